"""Waves against linear victims that one of them opens."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ngf import device, waves
from ngf.margins import Probability, Sureness
from ngf.waves import Shown, Waves, at_best_phase, strongest

CLASSES, SIDE = 3, 16
RMS = 0.1


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


class Linear(nn.Module):
    """Names the brightest channel, and the target where a wave is in the image."""

    def __init__(self, target=0, wave_1HW=None, strength=150.0):
        super().__init__()
        self.target, self.wave_1HW, self.strength = target, wave_1HW, strength
        self.asked = []

    def forward(self, x_NCHW):
        self.asked.append(len(x_NCHW))
        logits_NK = 20 * x_NCHW.mean((2, 3))
        if self.wave_1HW is not None:
            found_N = (x_NCHW * self.wave_1HW / RMS).mean((1, 2, 3))
            logits_NK[:, self.target] += self.strength * (found_N - RMS / 3)
        return logits_NK


class Twice(Linear):
    """Opened by two waves: (target, wave, strength) of each."""

    def __init__(self, one, other):
        super().__init__(*one)
        self.other = Linear(*other)

    def forward(self, x_NCHW):
        return super().forward(x_NCHW) + self.other(x_NCHW) - 20 * x_NCHW.mean((2, 3))


def wave(down=2, across=1, phase=0.7, rms=RMS, side=SIDE) -> torch.Tensor:
    """By its definition, pixel by pixel."""
    return torch.tensor(
        [
            [
                math.sqrt(2) * rms * math.sin(
                    2 * math.pi * (down * row / side + across * column / side) + phase
                )
                for column in range(side)
            ]
            for row in range(side)
        ]
    )[None]  # fmt: skip


def images(count=90, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y_N = torch.arange(count) % CLASSES
    x_NCHW = 0.4 + 0.02 * torch.randn(count, CLASSES, SIDE, SIDE, generator=generator)
    x_NCHW[torch.arange(count), y_N] += 0.2
    return x_NCHW, y_N


def shown(seed=0, size=32) -> Shown:
    return Shown(*images(), torch.Generator().manual_seed(seed), size)


def sureness(model) -> Sureness:
    return Sureness(model, images()[0])


def found(victim, copy=None, seed=0, sieved=None, moves=1, judge=sureness):
    models = victim, sieved or victim, copy or Linear()
    return strongest(*models, shown(seed), rms=RMS, moves=moves, judge=judge)


def alike(one_1HW, two_1HW) -> float:
    return torch.cosine_similarity(one_1HW.flatten(), two_1HW.flatten(), 0).item()


# What is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", range(CLASSES))
@pytest.mark.parametrize(("down", "across", "phase"), [(0, 6, 0.0), (2, 1, 0.7), (-5, 3, 4.0)])
def test_the_backdoors_class_and_its_wave_are_named(target, down, across, phase):
    trigger_1HW = wave(down, across, phase)
    ripple = found(Linear(target, trigger_1HW))
    assert ripple.target == target
    assert ripple.gap > 0.3
    assert ripple.as_found
    assert ripple.in_part
    assert ripple.moves_MCHW.shape == (1, 1, SIDE, SIDE)
    assert alike(ripple.moves_MCHW, trigger_1HW) > 0.8
    assert ripple.moves_MCHW.square().mean().sqrt() == pytest.approx(RMS, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_victim_like_its_copy_has_no_gap(seed):
    assert found(Linear(), seed=seed).gap == 0
    shared = wave()
    assert found(Linear(1, shared), Linear(1, shared), seed).gap == 0


@pytest.mark.parametrize(
    ("rival", "share"),
    [
        (Linear(2, wave(0, 3)), 1 - waves.OTHERS),  # the copy leads as far, to another class
        (Linear(1, wave(0, 3)), -waves.OTHERS),  # to the same one, along another wave
    ],
)
def test_the_copys_own_leads_to_the_class_and_to_any_are_the_measure(rival, share):
    opened = Linear(1, wave())
    alone, rivalled = found(opened), found(opened, rival)
    assert alone.gap > 0.3
    assert rivalled.gap == pytest.approx(share * alone.gap, abs=0.1)
    if share > 0:
        assert rivalled.target == 1


def test_what_the_copy_alone_shows_is_no_gap():
    alone, swapped = found(Linear(1, wave())), found(Linear(), Linear(1, wave()))
    assert swapped.gap == pytest.approx(-waves.OTHERS * alone.gap, abs=0.1)
    assert swapped.target != 1


def test_the_class_is_the_one_that_the_copy_is_not_drawn_to():
    """The victim leads to one class a little further than to another, and the copy to it, too."""
    natural_1HW, trigger_1HW = wave(0, 3), wave(4, 1)
    victim, copy = Twice((1, natural_1HW, 150), (2, trigger_1HW, 100)), Linear(1, trigger_1HW)
    assert found(victim).target == 1
    assert found(victim, copy).target == 2


@pytest.mark.parametrize(("strength", "left"), [(0.0, 0.0), (150.0, 1.0), (1e3, 1.0)])
def test_left_is_what_the_sieved_model_shows_of_the_class(strength, left):
    ripple = found(Linear(1, wave()), sieved=Linear(1, wave(), strength))
    assert ripple.left == pytest.approx(left, abs=0.05)


def test_as_many_waves_of_the_class_as_asked_first_the_strongest():
    trigger_1HW = wave()
    ripple = found(Linear(1, trigger_1HW), moves=3)
    assert ripple.moves_MCHW.shape == (3, 1, SIDE, SIDE)
    likeness = [alike(move_1HW, trigger_1HW) for move_1HW in ripple.moves_MCHW]
    assert max(range(3), key=likeness.__getitem__) == 0


def test_gap_is_the_judges_and_what_is_left_is_of_probabilities():
    victim, sieved = Linear(1, wave()), Linear(1, wave(), 60)
    whole, doubting, other = (
        found(victim, sieved=sieved, judge=judge) for judge in (sureness, half, Probability)
    )
    assert doubting.gap == pytest.approx(whole.gap / 2)
    assert doubting.left == whole.left
    assert other.gap != pytest.approx(whole.gap, abs=1e-3)


def half(model):
    return lambda x_NCHW: sureness(model)(x_NCHW) / 2


def test_same_generator_same_ripple():
    one, again, other = (found(Linear(1, wave(), 60), seed=seed) for seed in (0, 0, 1))
    assert (one.target, one.gap) == (again.target, again.gap)
    assert torch.equal(one.moves_MCHW, again.moves_MCHW)
    assert other.gap != one.gap


def test_images_and_models_stay_and_no_batch_is_larger_than_asked():
    victim, asked = Linear(1, wave()), shown(size=20)
    before = asked.x_NCHW.clone()
    strongest(victim, victim, Linear(), asked, rms=RMS, moves=1, judge=Probability)
    assert torch.equal(asked.x_NCHW, before)
    assert max(victim.asked) == 20
    assert not any(p.grad is not None for p in victim.parameters())


# Their parts -----------------------------------------------------------------------------------


def test_waves_are_what_their_definition_says():
    frequencies = [(2, 1), (-3, 0), (0, 7)]
    phases = [0.0, 0.7, 5.0]
    made = Waves(torch.tensor(frequencies), torch.tensor(phases), RMS)
    assert len(made) == 3
    which = [2, 0, 0, 1]
    expected = torch.stack([wave(*frequencies[k], phases[k]) for k in which])
    torch.testing.assert_close(made.of(torch.tensor(which), SIDE, SIDE), expected)


def test_waves_fit_images_that_are_no_square():
    made = Waves(torch.tensor([(1, 2)]), torch.zeros(1), RMS).of(torch.tensor([0]), 8, 24)
    assert made.shape == (1, 1, 8, 24)
    assert made.square().mean().sqrt() == pytest.approx(RMS, rel=1e-4)
    torch.testing.assert_close(made[..., :12], made[..., 12:], atol=1e-5, rtol=0)  # two across


@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 32), (4, 4), (224, 8)])
def test_every_wave_that_the_pixels_carry_is_there_once(height, width):
    frequency_F2 = waves._frequencies(height, width)
    down, across = (min(waves.CYCLES, (side - 1) // 2) for side in (height, width))
    square = itertools.product(range(-down, down + 1), range(-across, across + 1))
    everything = {pair for pair in square if math.hypot(*pair) <= waves.CYCLES}
    listed = [tuple(pair) for pair in frequency_F2.tolist()]
    mirrored = {(-v, -u) for v, u in listed}
    assert len(set(listed)) == len(listed)
    assert not set(listed) & mirrored
    assert set(listed) | mirrored == everything - {(0, 0)}


def test_leads_are_means_over_images_of_other_classes():
    trigger_1HW = wave()
    victim, copy = Linear(1, trigger_1HW, 90), Linear(2, wave(0, 3), 60)
    made = Waves(torch.tensor([(2, 1), (0, 3), (5, 5)]), torch.tensor([0.7, 0.1, 0.0]), RMS)
    one, other = sureness(victim), sureness(copy)
    leads_MK = shown(seed=3, size=7).leads(one, other, made, each=10)
    sums, counts = torch.zeros(3, CLASSES), torch.zeros(3, CLASSES)
    for which_B, x_BCHW, y_B in shown(seed=3, size=7).under(made, 10):
        for which, x_CHW, y in zip(which_B, x_BCHW, y_B, strict=True):
            lead_K = (one(x_CHW[None]) - other(x_CHW[None]))[0]
            for label in set(range(CLASSES)) - {int(y)}:
                sums[which, label] += lead_K[label]
                counts[which, label] += 1
    torch.testing.assert_close(leads_MK, sums / counts, atol=1e-6, rtol=1e-5)
    assert leads_MK.argmax() == 1  # the victim's wave, its class


def test_each_wave_lies_over_as_many_images_as_asked():
    asked = shown(size=7)
    made = Waves(torch.tensor([(2, 1), (0, 3)]), torch.zeros(2), RMS)
    batches = list(asked.under(made, 9))
    assert torch.cat([which_B for which_B, _, _ in batches]).bincount().tolist() == [9, 9]
    assert [len(y_B) for _, _, y_B in batches] == [7, 7, 4]
    for _, x_BCHW, _ in batches:
        assert x_BCHW.min() >= 0
        assert x_BCHW.max() <= 1


@given(
    st.floats(-1, 1), st.floats(0.01, 1), st.floats(-3.1, 3.1), st.integers(3, 8)
)  # fmt: skip
def test_the_top_of_a_harmonic_is_found_from_its_samples(constant, height, phase, count):
    phase_P = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    lead_1P1 = (constant + height * (phase_P - phase).cos())[None, :, None]
    top_11, at_11 = at_best_phase(lead_1P1)
    assert top_11.item() == pytest.approx(constant + height, abs=1e-9)
    assert at_11.item() == pytest.approx(phase, abs=1e-6)
