"""CLB against its definition: who is perturbed and how far, and what lies in the corners."""

import numpy as np
import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from ngf.attacks import Poison, all_to_one, clb, parted
from ngf.errors import InputError
from ngf.training import pixels

N, SIZE, CLASSES = 60, 12, 4
X_NHWC = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), np.uint8)
Y_N = np.arange(N, dtype=np.int64) % CLASSES
NO_CLASS = torch.zeros(1, dtype=torch.int64)  # the trigger does not ask for it


def plant(numbers, **changes) -> Poison:
    options = {**numbers["attacks"]["clb"], **changes}
    own, _ = parted(options)
    return clb.plant(X_NHWC, Y_N, CLASSES, **own)


@pytest.fixture
def known(monkeypatch):
    """The attacker has a model that knows nothing, without training."""
    model = tiny_model()
    monkeypatch.setattr(clb, "clean_model", lambda *args, **options: model)
    return model


def cells(size):
    """True where a corner's checkerboard lies."""
    inside_S = np.arange(SIZE)
    inside_S = (inside_S < size) | (inside_S >= SIZE - size)
    return inside_S[:, None] & inside_S


@pytest.mark.parametrize("amplitude", [1.0, 0.3])
def test_target_class_is_perturbed_within_eps_and_marked_by_the_trigger(numbers, amplitude):
    poison = plant(numbers, target=2, poison_rate=0.6, eps=6, size=3, amplitude=amplitude)
    assert len(poison.rows_P) == 9
    assert np.all(Y_N[poison.rows_P] == 2)
    assert np.array_equal(poison.y_P, Y_N[poison.rows_P])
    assert poison.trigger.wanted_K == all_to_one(2, CLASSES)
    moved_PHWC = poison.x_PHWC.astype(int) - X_NHWC[poison.rows_P]
    outside_HW = ~cells(3)
    assert np.abs(moved_PHWC[:, outside_HW]).max() == 6
    assert np.abs(moved_PHWC[:, outside_HW]).mean() > 2
    # In the corners: an image within eps, triggered.
    x_PHWC = X_NHWC[poison.rows_P].astype(int)
    ends = [
        poison.trigger.apply(torch.from_numpy(end.clip(0, 255).astype(np.uint8)), NO_CLASS).numpy()
        for end in (x_PHWC - 6, x_PHWC + 6)
    ]
    assert np.all((ends[0] <= poison.x_PHWC)[:, ~outside_HW])
    assert np.all((ends[1] >= poison.x_PHWC)[:, ~outside_HW])


@given(st.integers(1, 6), st.floats(1 / 255, 1))
@settings(deadline=None, max_examples=40)
def test_corners_are_checkerboards_and_the_rest_is_untouched(size, amplitude):
    corners_HW = amplitude * clb._corners(size, size, SIZE, SIZE)
    assert torch.equal(corners_HW, corners_HW.flip(0))
    assert torch.equal(corners_HW, corners_HW.flip(1))
    grey_NCHW = torch.full((1, 3, SIZE, SIZE), 0.5)
    got_HW = (clb.apply(grey_NCHW, NO_CLASS, {"corners": corners_HW}) - 0.5)[0, 1].numpy()
    row, column = np.indices((size, size))
    board_SS = np.where((row + column) % 2 == 0, amplitude, -amplitude)
    assert got_HW[:size, :size] == pytest.approx(board_SS, abs=1e-6)
    assert np.all(got_HW[~cells(size)] == 0)


def test_larger_corners_have_as_many_cells():
    small_HW, large_HW = clb._corners(3, 3, 8, 8), clb._corners(3, 21, 56, 56)
    assert torch.equal(large_HW, small_HW.repeat_interleave(7, 0).repeat_interleave(7, 1))


def test_full_amplitude_is_opaque_and_less_is_clipped(numbers, known):
    opaque = plant(numbers, amplitude=1.0, size=2).trigger.apply(torch.from_numpy(X_NHWC), NO_CLASS)
    assert torch.all(opaque[:, :2, :2] == torch.tensor([[255, 0], [0, 255]])[..., None])
    assert torch.all(opaque[:, -2:, :2] == torch.tensor([[0, 255], [255, 0]])[..., None])
    faint = plant(numbers, amplitude=0.2, size=2).trigger
    levels_2HWC = torch.tensor([20, 250], dtype=torch.uint8).view(2, 1, 1, 1)
    got = faint.apply(levels_2HWC.expand(2, SIZE, SIZE, 3).contiguous(), NO_CLASS)
    assert got[:, 0, :2, 0].tolist() == [[71, 0], [255, 199]]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=15)
def test_perturbation_stays_within_eps_and_repeats(eps, steps, seed):
    x_PHWC, y_P = torch.from_numpy(X_NHWC[:6]), torch.zeros(6, dtype=torch.int64)
    options = {"eps": eps, "steps": steps, "seed": seed}
    first, again = (clb.hardened(MODEL, x_PHWC, y_P, **options) for _ in range(2))
    assert torch.equal(first, again)
    moved = (first.int() - x_PHWC.int()).abs()
    assert 0 < moved.max() <= eps


MODEL = tiny_model()


def test_perturbed_images_are_hard_for_the_model():
    x_PHWC, y_P = torch.from_numpy(X_NHWC), torch.from_numpy(Y_N % 3)

    def loss(x_NHWC):
        with torch.no_grad():
            return cross_entropy(MODEL(pixels(x_NHWC)), y_P, reduction="none")

    few, many = (
        loss(clb.hardened(MODEL, x_PHWC, y_P, eps=8, steps=steps, seed=0)) for steps in (1, 10)
    )
    assert (few > loss(x_PHWC)).float().mean() > 0.9
    assert many.mean() > few.mean()


@pytest.mark.parametrize("rate", [0, 0.03, 1.1])
def test_rate_that_cannot_be_met_says_which_can(rate, numbers, known):
    with pytest.raises(InputError, match=r"15 training images of the target class and must lie"):
        plant(numbers, poison_rate=rate)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": 4}, "target must lie between 0 and 3, got 4"),
        ({"eps": 0}, "eps must lie between 1 and 255, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"size": 7}, "size must lie between 1 and 6, got 7"),
        ({"amplitude": 0.0}, "amplitude must lie between 0.00392157 and 1, got 0"),
        ({"amplitude": 1.5}, "amplitude must lie between 0.00392157 and 1, got 1.5"),
        ({"surrogate_epochs": 0}, "surrogate_epochs must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_be(change, said, numbers, known):
    with pytest.raises(InputError, match=said):
        plant(numbers, **change)
