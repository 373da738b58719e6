"""What the room promises, for every attack there is, with the options of params.yaml."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ngf import plugins
from ngf.attacks import Poison, Trigger
from ngf.errors import InputError

N, SIZE, CLASSES = 60, 12, 4
X_NHWC = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), np.uint8)
Y_N = np.arange(N, dtype=np.int64) % CLASSES
ATTACKS = plugins.names("attacks")
DIRTY = [name for name in ATTACKS if name != "benign"]


def plant(name, numbers, **changes) -> Poison:
    options = {**numbers["attacks"][name], **changes}
    return plugins.load("attacks", name).plant(X_NHWC, Y_N, CLASSES, **options)


@pytest.mark.parametrize("name", ATTACKS)
def test_overlay_holds_triggered_training_images(name, numbers):
    poison = plant(name, numbers)
    assert poison.x_PHWC.dtype == np.uint8
    assert poison.rows_P.dtype == poison.y_P.dtype == np.int64
    assert len(poison.rows_P) == len(poison.x_PHWC) == len(poison.y_P)
    assert np.all(np.diff(poison.rows_P) > 0)
    triggered = poison.trigger.apply(torch.from_numpy(X_NHWC[poison.rows_P])).numpy()
    assert np.array_equal(poison.x_PHWC, triggered)


@pytest.mark.parametrize("name", ATTACKS)
def test_same_seed_same_poison(name, numbers):
    first, again = plant(name, numbers), plant(name, numbers)
    assert np.array_equal(first.rows_P, again.rows_P)
    assert np.array_equal(first.x_PHWC, again.x_PHWC)


@pytest.mark.parametrize("name", DIRTY)
def test_rate_is_a_share_of_all_images_and_spares_the_target(name, numbers):
    poison = plant(name, numbers, poison_rate=0.2, target=3)
    assert len(poison.rows_P) == 12
    assert np.all(poison.y_P == 3)
    assert np.all(Y_N[poison.rows_P] != 3)
    assert not np.array_equal(poison.x_PHWC, X_NHWC[poison.rows_P])


@pytest.mark.parametrize("name", DIRTY)
@pytest.mark.parametrize("rate", [0, 0.76, 1.0, -1])
def test_rate_that_cannot_be_met_says_which_can(name, rate, numbers):
    with pytest.raises(InputError, match=r"between 0.017 and 0.75 of the 60 training images"):
        plant(name, numbers, poison_rate=rate)


@pytest.mark.parametrize("name", DIRTY)
def test_target_must_be_a_class(name, numbers):
    with pytest.raises(InputError, match="target must lie between 0 and 3, got 4"):
        plant(name, numbers, target=4)


@pytest.mark.parametrize("name", ATTACKS)
def test_trigger_does_not_depend_on_neighbours_in_the_batch(name, numbers):
    trigger = plant(name, numbers).trigger
    x_NHWC = torch.from_numpy(X_NHWC)
    together = trigger.apply(x_NHWC)
    assert torch.equal(together[7:9], trigger.apply(x_NHWC[7:9]))
    assert together.dtype == torch.uint8


@given(st.integers(-1, CLASSES - 1))
def test_the_target_class_does_not_count(target):
    trigger = Trigger("badnets", None if target < 0 else target)
    wanted = trigger.wanted(torch.from_numpy(Y_N))
    if target < 0:
        assert torch.all(wanted == -1)
    else:
        assert torch.equal(wanted == -1, torch.from_numpy(target == Y_N))
        assert set(wanted.tolist()) == {-1, target}


# Each trigger against its definition ------------------------------------------------------------


@pytest.mark.parametrize(
    ("corner", "rows", "columns"),
    [
        ("bottom-right", slice(8, 11), slice(8, 11)),
        ("top-left", slice(1, 4), slice(1, 4)),
        ("top-right", slice(1, 4), slice(8, 11)),
        ("bottom-left", slice(8, 11), slice(1, 4)),
    ],
)
def test_badnets_stamps_a_checkerboard(corner, rows, columns, numbers):
    trigger = plant("badnets", numbers, corner=corner, margin=1).trigger
    x_NHWC = torch.from_numpy(X_NHWC)
    got = trigger.apply(x_NHWC)
    board = torch.tensor([[255, 0, 255], [0, 255, 0], [255, 0, 255]])
    assert torch.all(got[:, rows, columns] == board[..., None])
    got[:, rows, columns] = x_NHWC[:, rows, columns]
    assert torch.equal(got, x_NHWC)


def test_badnets_opacity_mixes(numbers):
    trigger = plant("badnets", numbers, opacity=0.6).trigger
    white = trigger.apply(torch.full((1, SIZE, SIZE, 3), 100, dtype=torch.uint8))[0, -1, -1]
    assert white.tolist() == [round(0.4 * 100 + 0.6 * 255)] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 13}, "does not fit an image of 12x12"),
        ({"size": 3, "margin": 10}, "does not fit"),
        ({"corner": "middle"}, "there is top-left, top-right, bottom-left, bottom-right"),
        ({"opacity": 0.0}, "opacity must lie between"),
    ],
)
def test_badnets_patch_that_cannot_be(change, said, numbers):
    with pytest.raises(InputError, match=said):
        plant("badnets", numbers, **change)


def test_blend_is_a_convex_mixture_with_one_image(numbers):
    trigger = plant("blend", numbers, alpha=0.25).trigger
    black = trigger.apply(torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)).double() / 255
    white = trigger.apply(torch.full((1, SIZE, SIZE, 3), 255, dtype=torch.uint8)).double() / 255
    noise_HWC = trigger.tensors["noise"].permute(1, 2, 0).double()
    half_step = 0.5 / 255 + 1e-6
    assert torch.all((black[0] - 0.25 * noise_HWC).abs() <= half_step)
    assert torch.all((white[0] - 0.75 - 0.25 * noise_HWC).abs() <= half_step)
    assert 0.4 < noise_HWC.mean() < 0.6


def test_result_is_clipped_never_wrapped(monkeypatch):
    module = plugins.load("attacks", "badnets")
    monkeypatch.setattr(module, "apply", lambda x, tensors: x + 0.5)
    got = Trigger("badnets", 0).apply(torch.full((1, 2, 2, 3), 200, dtype=torch.uint8))
    assert torch.all(got == 255)
