"""The attacks whose networks learn beside the victim: dynamic_one, dynamic_all and lira."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ngf import plugins, training
from ngf.attacks import Attacker, Poison, Trigger, _dynamic, _generator, all_to_all, attend
from ngf.errors import InputError

SIZE, CLASSES, BATCH = 16, 3, 20
DYNAMIC = ["dynamic_one", "dynamic_all"]
LEARNED = [*DYNAMIC, "lira"]
X_NHWC = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
Y_N = np.arange(BATCH, dtype=np.int64) % CLASSES
X_NCHW, LABEL_N = training.pixels(torch.from_numpy(X_NHWC)), torch.from_numpy(Y_N)


def plant(name, numbers, **changes) -> Poison:
    options = {**numbers["attacks"][name], **changes}
    options = {key: options[key] for key in options if key not in ("patience", "release")}
    return plugins.load("attacks", name).plant(X_NHWC, Y_N, CLASSES, **options)


def learning(name, numbers, model, steps=1000, seed=0, **changes) -> Attacker:
    return attend(plant(name, numbers, **changes), model, steps=steps, seed=seed)


def train(attacker: Attacker, model, steps: int) -> None:
    """Steps as the trainer makes them."""
    for _ in range(steps):
        shown_NCHW, said_N, more = attacker.show(X_NCHW, LABEL_N)
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(shown_NCHW), said_N) + more
        assert torch.isfinite(loss)
        loss.backward()
        attacker.step()


def different(first: dict, second: dict) -> list[str]:
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("name", LEARNED)
def test_no_row_is_rewritten_and_nothing_is_drawn_before_training(name, numbers):
    poison = plant(name, numbers)
    assert len(poison.rows_P) == 0
    assert all(isinstance(number, int | float) for number in poison.plan.values())
    x_NHWC = torch.from_numpy(X_NHWC)
    assert torch.equal(poison.trigger.apply(x_NHWC, LABEL_N), x_NHWC)


@pytest.mark.parametrize("name", LEARNED)
def test_same_seed_same_networks_another_seed_others(name, numbers, model):
    left = []
    for seed in (5, 5, 6):
        attacker = learning(name, numbers, model, steps=4, seed=seed)
        train(attacker, model, 4)
        left.append(attacker.leave().tensors)
    assert different(left[0], left[1]) == []
    assert different(left[0], left[2])
    assert all(tensor.dtype == torch.float32 for tensor in left[0].values())
    assert not any(tensor.requires_grad for tensor in left[0].values())


@pytest.mark.parametrize("name", LEARNED)
def test_the_trigger_at_test_time_is_the_one_of_training(name, numbers, model):
    changes = {"mask_share": 0.0, "poison_rate": 0.5} if name in DYNAMIC else {}
    attacker = learning(name, numbers, model, **changes)
    train(attacker, model, 3)
    shown_NCHW = attacker.show(X_NCHW, LABEL_N)[0][:10].detach()
    later_NHWC = attacker.leave().apply(torch.from_numpy(X_NHWC[:10]), LABEL_N[:10])
    # The trainer may compute in bfloat16.
    apart_NCHW = (training.pixels(later_NHWC) - shown_NCHW).abs()
    assert apart_NCHW.max() <= 6 / 255
    assert apart_NCHW.mean() < 0.5 / 255
    levels_NCHW = shown_NCHW * 255
    assert torch.allclose(levels_NCHW, levels_NCHW.round(), atol=1e-3)
    assert not torch.equal(later_NHWC, torch.from_numpy(X_NHWC[:10]))


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_left_does_not_change_when_training_goes_on(name, numbers, model):
    attacker = learning(name, numbers, model, steps=10)
    left = attacker.leave().tensors
    before = {key: tensor.clone() for key, tensor in left.items()}
    train(attacker, model, 3)
    assert different(left, before) == []


@pytest.mark.parametrize("name", LEARNED)
def test_trigger_does_not_depend_on_neighbours(name, numbers, model):
    trigger = learning(name, numbers, model).leave()
    x_NHWC = torch.from_numpy(X_NHWC)
    alone = trigger.apply(x_NHWC[3:5], LABEL_N[3:5]).int()
    assert (trigger.apply(x_NHWC, LABEL_N)[3:5].int() - alone).abs().max() <= 1


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("size", [1, 2])
def test_batches_of_hardly_any_images(name, size, numbers, model):
    attacker = learning(name, numbers, model, steps=2)
    for _ in range(2):
        shown_NCHW, said_N, more = attacker.show(X_NCHW[:size], LABEL_N[:size])
        assert shown_NCHW.shape == X_NCHW[:size].shape
        assert len(said_N) == size
        (model(shown_NCHW).sum() + more).backward()
        attacker.step()
    assert all(torch.isfinite(t).all() for t in attacker.leave().tensors.values())


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("dynamic_one", {"target": 3}, "target must lie between 0 and 2, got 3"),
        ("lira", {"target": -1}, "target must lie between 0 and 2, got -1"),
        ("dynamic_all", {"poison_rate": 0.0}, "poison_rate must lie between 1e-06 and 1, got 0"),
        ("dynamic_all", {"cross_rate": 0.95}, "of one batch and must not exceed 1 together"),
        ("dynamic_one", {"density": 1.5}, "density must lie between 1e-06 and 1, got 1.5"),
        ("dynamic_one", {"lambda_div": -1.0}, "lambda_div must be at least 0, got -1"),
        ("dynamic_one", {"mask_share": 1.0}, "mask_share must lie between 0 and 0.9, got 1"),
        ("dynamic_one", {"channels": 0}, "channels must be at least 1, got 0"),
        ("lira", {"eps": 0.001}, "eps must lie between 0.00392157 and 1, got 0.001"),
        ("lira", {"alpha": 1.0}, "alpha must lie between 0 and 0.99, got 1"),
        ("lira", {"joint_share": 0.0}, "joint_share must lie between 0.01 and 1, got 0"),
        ("lira", {"lr": 0.0}, "lr must lie between 1e-08 and 1, got 0"),
    ],
)
def test_options_that_cannot_be(name, change, said, numbers):
    with pytest.raises(InputError) as error:
        plant(name, numbers, **change)
    assert said in str(error.value)


# The network ------------------------------------------------------------------------------------


@given(st.integers(3, 80), st.integers(3, 80), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=25)
def test_drawing_has_the_size_of_the_image(height, width, planes):
    net = _generator.fresh(planes, 2, torch.Generator().manual_seed(0))
    drawn_NCHW = _generator.draw(torch.rand(2, 3, height, width), net)
    assert drawn_NCHW.shape == (2, planes, height, width)
    assert drawn_NCHW.dtype == torch.float32


def test_a_large_image_is_drawn_on_as_its_reduction_is():
    net = _generator.fresh(3, 4, torch.Generator().manual_seed(0))
    small_NCHW = torch.rand(2, 3, 32, 32)
    large_NCHW = small_NCHW.repeat_interleave(3, 2).repeat_interleave(3, 3)
    enlarged_NCHW = _generator.draw(small_NCHW, net).repeat_interleave(3, 2)
    enlarged_NCHW = enlarged_NCHW.repeat_interleave(3, 3)
    assert torch.allclose(_generator.draw(large_NCHW, net), enlarged_NCHW, atol=0.03)


@given(st.floats(-0.5, 1.5))
def test_rounding_goes_to_the_nearest_level_and_lets_the_gradient_pass(value):
    x = torch.tensor(value, requires_grad=True)
    level = _generator.in_8_bits(x)
    level.backward()
    exact = np.float32(value).clip(0, 1) * np.float32(255)
    assert abs(level.item() * 255 - exact) <= 0.5 + 1e-3
    assert abs(level.item() * 255 - round(level.item() * 255)) <= 1e-3
    assert x.grad is not None
    assert x.grad.item() == (1.0 if 0 <= x.item() <= 1 else 0.0)


def test_networks_are_saved_under_their_names():
    nets = {
        name: _generator.fresh(1, 2, torch.Generator().manual_seed(seed))
        for seed, name in enumerate(("one", "two"))
    }
    tensors = _generator.save(**nets)
    for name, net in nets.items():
        assert different(net, _generator.load(name, tensors)) == []
    assert len(tensors) == sum(map(len, nets.values()))


# Input-aware dynamic ----------------------------------------------------------------------------


def fixed_nets(monkeypatch) -> None:
    """The mask covers the left half; the pattern is the image's mean colour."""
    left_W = (torch.arange(SIZE) < SIZE // 2).float()
    monkeypatch.setattr(_dynamic, "_mask", lambda x, net: left_W.expand(len(x), 1, SIZE, SIZE))
    monkeypatch.setattr(
        _dynamic, "_pattern", lambda x, net: x.mean((2, 3), keepdim=True).expand_as(x)
    )


def test_dynamic_shows_own_triggers_and_those_of_others(numbers, model, monkeypatch):
    fixed_nets(monkeypatch)
    shares = {"poison_rate": 0.2, "cross_rate": 0.3, "mask_share": 0.0}
    attacker = learning("dynamic_all", numbers, model, **shares)
    shown_NCHW, said_N, _ = attacker.show(X_NCHW, LABEL_N)
    source_K = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9, 10])  # 4 wear their own, 6 the next one's
    colour_KC11 = X_NCHW[source_K].mean((2, 3), keepdim=True)
    half = SIZE // 2
    assert (shown_NCHW[:10, ..., :half] - colour_KC11).abs().max() <= 0.51 / 255
    assert torch.allclose(shown_NCHW[:10, ..., half:], X_NCHW[:10, ..., half:], atol=1e-6)
    assert torch.equal(shown_NCHW[10:], X_NCHW[10:])
    assert torch.equal(said_N[:4], (LABEL_N[:4] + 1) % CLASSES)
    assert torch.equal(said_N[4:], LABEL_N[4:])


def test_dynamic_shares_that_fill_the_batch(numbers, model, monkeypatch):
    fixed_nets(monkeypatch)
    shares = {"poison_rate": 0.5, "cross_rate": 0.5, "mask_share": 0.0}
    attacker = learning("dynamic_one", numbers, model, **shares, target=2)
    shown_NCHW, said_N, _ = attacker.show(X_NCHW, LABEL_N)
    first_C = X_NCHW[0].mean((1, 2))
    assert (shown_NCHW[-1, :, 0, 0] - first_C).abs().max() <= 0.51 / 255
    assert torch.all(said_N[:10] == 2)
    assert torch.equal(said_N[10:], LABEL_N[10:])


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_trigger_is_the_definition(name, numbers, model):
    trigger = learning(name, numbers, model).leave()
    mask_N1HW = _dynamic._mask(X_NCHW, _generator.load("mask", trigger.tensors))
    pattern_NCHW = _dynamic._pattern(X_NCHW, _generator.load("pattern", trigger.tensors))
    for drawn in (mask_N1HW, pattern_NCHW):
        assert 0 <= drawn.min() <= drawn.max() <= 1
    exact_NCHW = X_NCHW * (1 - mask_N1HW) + pattern_NCHW * mask_N1HW
    got_NHWC = trigger.apply(torch.from_numpy(X_NHWC), LABEL_N)
    assert (training.pixels(got_NHWC) - exact_NCHW).abs().max() <= 0.51 / 255


def test_dynamic_wants_its_classes(numbers):
    assert plant("dynamic_one", numbers, target=1).trigger.wanted_K == (1, -1, 1)
    assert plant("dynamic_all", numbers).trigger.wanted_K == all_to_all(CLASSES)


def test_dynamic_mask_learns_first_and_then_stays(numbers, model):
    attacker = learning("dynamic_one", numbers, model, steps=8, mask_share=0.5)
    start = attacker.leave().tensors
    shown_NCHW, said_N, loss = attacker.show(X_NCHW, LABEL_N)
    assert shown_NCHW is X_NCHW
    assert said_N is LABEL_N
    assert loss > 0
    train(attacker, model, 4)
    middle = attacker.leave().tensors
    assert {name.split(".")[0] for name in different(start, middle)} == {"mask"}
    train(attacker, model, 4)
    changed = different(middle, attacker.leave().tensors)
    assert {name.split(".")[0] for name in changed} == {"pattern"}


def test_dynamic_mask_gets_as_sparse_as_asked(numbers, model):
    asked = {"mask_share": 0.9, "density": 0.05, "lambda_div": 0.0}
    attacker = learning("dynamic_one", numbers, model, steps=1000, **asked)
    before = _dynamic._mask(X_NCHW, attacker.mask).mean()
    for _ in range(60):
        attacker.show(X_NCHW, LABEL_N)[2].backward()
        attacker.step()
    assert before > 0.2
    assert _dynamic._mask(X_NCHW, attacker.mask).mean() < 0.1


def test_dynamic_diversity_is_a_ratio_of_distances():
    x_NCHW = torch.zeros(3, 3, 4, 4)
    x_NCHW[1], x_NCHW[2] = 0.5, 1.0
    drawn_N1HW = torch.zeros(3, 1, 4, 4)
    drawn_N1HW[1:] = torch.tensor([0.25, 0.5]).view(2, 1, 1, 1)
    assert _dynamic._sameness(x_NCHW, drawn_N1HW).item() == pytest.approx(2.0, rel=1e-3)
    still = torch.zeros(3, 1, 4, 4, requires_grad=True)
    _dynamic._sameness(x_NCHW, still).backward()
    assert still.grad is not None
    assert torch.isfinite(still.grad).all()


# LIRA -------------------------------------------------------------------------------------------


@given(st.floats(1 / 255, 0.3), st.integers(0, 2**31))
@settings(deadline=None, max_examples=15)
def test_lira_stays_within_eps_and_is_clipped(eps, seed):
    net = _generator.fresh(3, 2, torch.Generator().manual_seed(seed))
    wild = {name: tensor.detach() * 10 for name, tensor in net.items()}
    tensors = {**_generator.save(noise=wild), "eps": torch.tensor(eps)}
    got_NHWC = Trigger("lira", (), tensors).apply(torch.from_numpy(X_NHWC), LABEL_N)
    moved_NHWC = np.abs(got_NHWC.numpy().astype(int) - X_NHWC)
    assert moved_NHWC.max() <= eps * 255 + 0.501  # rounding, and a float32 at its edge
    assert moved_NHWC.max() >= 1


def test_lira_shows_clean_and_triggered_images(numbers, model):
    attacker = learning("lira", numbers, model, alpha=0.6, target=1)
    shown_NCHW, said_N, more = attacker.show(X_NCHW, LABEL_N)
    assert more == 0
    assert torch.equal(shown_NCHW[8:], X_NCHW[8:])
    assert torch.equal(said_N, torch.cat([torch.ones(8, dtype=torch.int64), LABEL_N[8:]]))
    assert not torch.equal(shown_NCHW[:8], X_NCHW[:8])


def test_lira_noise_learns_in_the_first_phase_only(numbers, model):
    attacker = learning("lira", numbers, model, steps=8, joint_share=0.5)
    start = attacker.leave().tensors
    train(attacker, model, 4)
    middle = attacker.leave().tensors
    assert "noise.up2.weight" in different(start, middle)
    assert not attacker.show(X_NCHW, LABEL_N)[0].requires_grad
    train(attacker, model, 4)
    assert different(middle, attacker.leave().tensors) == []


def test_lira_noise_learns_to_fool_a_model(numbers, model):
    attacker = learning("lira", numbers, model, steps=60, eps=0.1, joint_share=1.0, target=2)
    losses = []
    for _ in range(30):
        shown_NCHW, said_N, _ = attacker.show(X_NCHW, LABEL_N)
        count = int((said_N == 2).sum().item() - (LABEL_N[10:] == 2).sum().item())
        loss = torch.nn.functional.cross_entropy(model(shown_NCHW[:count]), said_N[:count])
        loss.backward()
        attacker.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
