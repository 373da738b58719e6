"""WaNet and BppAttack: their triggers by definition, and their part in the victim's training."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ngf import plugins
from ngf.attacks import attend, parted
from ngf.errors import InputError

N, SIZE, CLASSES = 60, 12, 4
X_NHWC = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), np.uint8)
Y_N = np.arange(N, dtype=np.int64) % CLASSES
BOTH = ("wanet", "bppa")
VICTIM = torch.nn.Linear(1, 1)  # asked for its device alone
DECOYS = {"wanet": "cross_ratio", "bppa": "neg_ratio"}


def plant(name, numbers, x_NHWC=X_NHWC, **changes):
    given = {**numbers["attacks"][name], **changes}
    own, _ = parted(given)
    return plugins.load("attacks", name).plant(x_NHWC, Y_N[: len(x_NHWC)], CLASSES, **own)


def batch(size=40, seed=0):
    x_NHWC = torch.randint(
        0, 256, (size, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(seed)
    )
    return x_NHWC.to(torch.uint8), torch.arange(size) % CLASSES


def shown(planted, seed=0, batches=1):
    """What the attacker makes of the same batch, several times."""
    x_NHWC, y_N = batch()
    x_NCHW = x_NHWC.permute(0, 3, 1, 2).float() / 255
    attacker = attend(planted, VICTIM, steps=batches, seed=seed)
    return x_NCHW, y_N, [attacker.show(x_NCHW, y_N) for _ in range(batches)]


@pytest.mark.parametrize("name", BOTH)
def test_training_shows_the_trigger_of_the_test(name, numbers):
    options = {"poison_rate": 0.25, DECOYS[name]: 1.0, "target": 2, "head_start": 1.0}
    planted = plant(name, numbers, **options)
    x_NCHW, y_N, [(got_NCHW, said_N, loss)] = shown(planted)
    tested_NHWC = planted.trigger.apply(*batch())
    assert torch.equal(got_NCHW[:40], x_NCHW)
    got_NCHW = got_NCHW[40:]
    levels_NCHW = got_NCHW * 255
    assert torch.allclose(levels_NCHW, levels_NCHW.round(), atol=1e-4)
    assert torch.equal(levels_NCHW[:10].round().to(torch.uint8).permute(0, 2, 3, 1),
                       tested_NHWC[:10])  # fmt: skip
    assert said_N.tolist() == [*y_N.tolist(), *[2] * 10, *y_N[:10].tolist()]
    assert len(got_NCHW) == 20
    for copy_NCHW in got_NCHW.split(10):
        assert not (copy_NCHW == x_NCHW[:10]).flatten(1).all(1).any()
    assert loss == 0


@pytest.mark.parametrize("name", BOTH)
def test_head_start_fades_until_three_quarters_of_the_training(name, numbers):
    planted = plant(name, numbers, poison_rate=0.25, head_start=4.0)
    x_NCHW, _, batches = shown(planted, batches=8)
    change_T = [float((x[40:50] - x_NCHW[:10]).square().mean()) for x, _, _ in batches]
    assert change_T[0] == change_T[1] == change_T[2]
    assert sorted(change_T, reverse=True) == change_T
    assert change_T[2] > change_T[4] > change_T[6] == change_T[7]
    tested_NHWC = planted.trigger.apply(*batch())[:10]
    last_NHWC = (batches[-1][0][40:50] * 255).round().permute(0, 2, 3, 1)
    assert torch.equal(last_NHWC.to(torch.uint8), tested_NHWC)


@pytest.mark.parametrize("name", BOTH)
def test_same_seed_same_batches_and_the_trigger_stays(name, numbers):
    planted = plant(name, numbers)
    first, again = (shown(planted, batches=2)[2] for _ in range(2))
    for (x_NCHW, y_N, _), (x_again_NCHW, y_again_N, _) in zip(first, again, strict=True):
        assert torch.equal(x_NCHW, x_again_NCHW)
        assert torch.equal(y_N, y_again_N)
    assert attend(planted, VICTIM, steps=1, seed=0).leave() is planted.trigger


@given(st.floats(0.001, 1), st.floats(0, 1), st.sampled_from(BOTH))
@settings(deadline=None, max_examples=10)
def test_shares_hold_over_many_batches(rate, decoy_rate, name):
    numbers = {"wanet": {"k": 2, "s": 1.0, "grid_rescale": 1.0, "seed": 0},
               "bppa": {"squeeze_num": 2, "dithering": False}}[name]  # fmt: skip
    options = {"target": 3, "poison_rate": rate, "head_start": 1.0, **numbers}
    options[DECOYS[name]] = decoy_rate / rate * (1 - 1e-9)
    planted = plant(name, {"attacks": {name: options}})
    _, y_N, batches = shown(planted, batches=6)
    added = sum(len(said_N) - 40 for _, said_N, _ in batches)
    assert abs(added - 6 * 40 * (rate + decoy_rate)) <= 2
    for x_NCHW, said_N, _ in batches:
        assert len(x_NCHW) == len(said_N)
        assert torch.equal(said_N[:40], y_N)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"poison_rate": 0.0}, "poison_rate must lie between 1e-06 and 1, got 0"),
        ({"poison_rate": 1.5}, "poison_rate must lie between 1e-06 and 1, got 1.5"),
        ({"poison_rate": 0.5, "ratio": 2.5}, "ratio must lie between 0 and 2 with poison_rate 0.5"),
        ({"ratio": -1.0}, "ratio must be at least 0"),
        ({"head_start": 0.5}, "head_start must lie between 1 and 100, got 0.5"),
        ({"target": 4}, "target must lie between 0 and 3, got 4"),
    ],
)
def test_shares_that_cannot_be(name, change, said, numbers):
    change = {DECOYS[name] if key == "ratio" else key: value for key, value in change.items()}
    with pytest.raises(InputError, match=said):
        plant(name, numbers, **change)


# WaNet ------------------------------------------------------------------------------------------


def test_wanet_field_is_upsampled_from_its_control_points(numbers):
    """With a control point for every pixel nothing is between them: the field is the noise."""
    grid_HW2 = plant("wanet", numbers, k=SIZE, s=0.5).trigger.tensors["grid"]
    own_W = torch.linspace(-1, 1, SIZE)
    field_HW2 = grid_HW2 - torch.stack(torch.meshgrid(own_W, own_W, indexing="xy"), 2)
    inside_HW2 = field_HW2[1:-1, 1:-1] * 32 / 0.5
    assert inside_HW2.abs().mean() == pytest.approx(1, abs=0.15)  # uniform, mean size 1
    assert inside_HW2.abs().max() <= 2.2
    assert grid_HW2.abs().max() <= 1


@given(st.floats(0.1, 3), st.integers(2, SIZE), st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_wanet_field_grows_with_s_alone(s, k, seed):
    options = {"target": 0, "poison_rate": 0.1, "cross_ratio": 2.0, "k": k}
    options |= {"grid_rescale": 0.5, "head_start": 1.0}
    own_W = torch.linspace(-1, 1, SIZE)
    own_HW2 = torch.stack(torch.meshgrid(own_W, own_W, indexing="xy"), 2)
    field, double = (
        plant("wanet", {"attacks": {"wanet": options}}, s=scale, seed=seed).trigger.tensors["grid"]
        / 0.5 - own_HW2
        for scale in (s, 2 * s)
    )  # fmt: skip
    assert torch.allclose(2 * field, double, atol=1e-5)


def test_wanet_reads_between_pixels(numbers):
    """Half a pixel to the right: the mean of two neighbours, the border repeated."""
    tensors = dict(plant("wanet", numbers).trigger.tensors)
    own_W = torch.linspace(-1, 1, SIZE)
    x_HW, y_HW = torch.meshgrid(own_W, own_W, indexing="xy")
    tensors["grid"] = torch.stack(((x_HW + 1 / (SIZE - 1)).clamp(-1, 1), y_HW), 2)
    x_NCHW = torch.rand(2, 3, SIZE, SIZE)
    got_NCHW = plugins.load("attacks", "wanet").apply(x_NCHW, torch.zeros(2), tensors)
    wanted_NCHW = (x_NCHW[..., :-1] + x_NCHW[..., 1:]) / 2
    assert torch.allclose(got_NCHW[..., :-1], wanted_NCHW, atol=1e-5)
    assert torch.allclose(got_NCHW[..., -1], x_NCHW[..., -1], atol=1e-5)


def test_wanet_noise_is_fresh_for_each_image_and_batch(numbers):
    planted = plant("wanet", numbers, poison_rate=0.1, cross_ratio=2.0, head_start=1.0)
    _, _, [(first, _, _), (then, _, _)] = shown(planted, batches=2)
    assert torch.equal(first[:44], then[:44])
    assert (first[44:] != then[44:]).flatten(1).any(1).all()


@pytest.mark.parametrize("change", [{"k": 1}, {"k": 13}, {"s": 0.0}, {"grid_rescale": 2.0}])
def test_wanet_field_that_cannot_be(change, numbers):
    name = next(iter(change))
    with pytest.raises(InputError, match=f"^{name} must lie between"):
        plant("wanet", numbers, **change)


# BppAttack --------------------------------------------------------------------------------------


@given(st.integers(2, 255), st.booleans())
@settings(deadline=None, max_examples=20)
def test_bppa_leaves_no_other_levels(squeeze_num, dithering):
    options = {"target": 0, "poison_rate": 0.1, "neg_ratio": 1.0, "head_start": 1.0}
    options |= {"squeeze_num": squeeze_num, "dithering": dithering}
    trigger = plant("bppa", {"attacks": {"bppa": options}}).trigger
    x_NHWC, y_N = batch()
    got = trigger.apply(x_NHWC, y_N).numpy()
    levels = np.rint(np.arange(squeeze_num) * 255 / (squeeze_num - 1)).astype(np.uint8)
    assert np.isin(got, levels).all()
    if not dithering:
        assert np.abs(got.astype(float) - x_NHWC.numpy()).max() <= 127.5 / (squeeze_num - 1) + 0.5


@given(st.integers(2, 16), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_bppa_dithers_like_floyd_and_steinberg(squeeze_num, height, width, seed):
    """Against their loop over pixels; sixteenths keep every sum exact."""
    rng, top = np.random.default_rng(seed), squeeze_num - 1
    exact_HW = rng.integers(0, 16 * top + 1, (height, width)) / 16
    tensors = {"levels": torch.tensor(float(squeeze_num)), "dithering": torch.tensor(1.0)}
    x_NCHW = torch.from_numpy(exact_HW / top)[None, None].expand(2, 3, -1, -1)
    got_NCHW = plugins.load("attacks", "bppa").apply(x_NCHW, torch.zeros(2), tensors) * top
    left_HW = np.pad(np.array(exact_HW / top) * top, ((0, 1), (1, 1)))
    for row in range(height):
        for column in range(1, width + 1):
            level = min(max(round(left_HW[row, column]), 0), top)
            error = (left_HW[row, column] - level) / 16
            left_HW[row, column] = level
            left_HW[row, column + 1] += 7 * error
            left_HW[row + 1, column - 1 : column + 2] += np.array([3, 5, 1]) * error
    wanted_HW = torch.from_numpy(left_HW[:height, 1 : width + 1])
    assert torch.allclose(got_NCHW, wanted_HW.expand_as(got_NCHW))


def test_bppa_dithering_keeps_the_mean_brightness(numbers):
    trigger = plant("bppa", numbers, squeeze_num=2, dithering=True).trigger
    grey_NHWC = torch.full((1, 32, 32, 3), 100, dtype=torch.uint8)
    assert trigger.apply(grey_NHWC, torch.zeros(1)).float().mean() == pytest.approx(100, abs=8)


def test_bppa_negatives_carry_the_error_of_another_image(numbers):
    options = {"poison_rate": 0.1, "neg_ratio": 1.0, "squeeze_num": 8, "dithering": False}
    options |= {"head_start": 1.0}
    x_NCHW, _, [(got_NCHW, _, _)] = shown(plant("bppa", numbers, **options))
    error_NCHW = (x_NCHW * 7).round() / 7 - x_NCHW
    assert torch.allclose(
        got_NCHW[44:], (x_NCHW[:4] + error_NCHW.roll(1, 0)[:4]).clamp(0, 1), atol=0.51 / 255
    )


@pytest.mark.parametrize("squeeze_num", [1, 256])
def test_bppa_levels_that_cannot_be(squeeze_num, numbers):
    with pytest.raises(InputError, match="squeeze_num must lie between 2 and 255"):
        plant("bppa", numbers, squeeze_num=squeeze_num)
