"""Attacks whose training set also shows the trigger, or a part of it, with true labels."""

import numpy as np
import pytest
import torch

from ngf import attacks, plugins
from ngf.attacks._cover import cover_rows
from ngf.errors import InputError

N, SIZE, CLASSES = 200, 16, 5
X_NHWC = np.random.default_rng(0).integers(1, 255, (N, SIZE, SIZE, 3), np.uint8)
Y_N = np.arange(N, dtype=np.int64) % CLASSES


def plant(name, numbers, **changes):
    options, _ = attacks.parted({**numbers["attacks"][name], **changes})
    return plugins.load("attacks", name).plant(X_NHWC, Y_N, CLASSES, **options)


@pytest.mark.parametrize("name", ["tact", "adaptive_blend"])
def test_poison_gets_the_target_and_cover_keeps_its_label(name, numbers):
    rate = 0.25 if name == "tact" else 0.1  # of the two sources' 80 images; of all 200
    poison = plant(name, numbers, poison_rate=rate, cover_rate=0.15)
    changed = poison.y_P != Y_N[poison.rows_P]
    assert changed.sum() == 20
    assert np.all(poison.y_P[changed] == 0)
    assert len(set(poison.rows_P.tolist())) == len(poison.rows_P) == 50
    own = Y_N[poison.rows_P[~changed]]
    assert np.array_equal(poison.y_P[~changed], own)
    assert not np.any((poison.x_PHWC == X_NHWC[poison.rows_P]).all((1, 2, 3)))


@pytest.mark.parametrize("name", ["tact", "adaptive_blend"])
def test_a_cover_that_cannot_be_says_what_can(name, numbers):
    with pytest.raises(InputError, match=rf"'{name}': cover_rate must lie between 0 and 0\."):
        plant(name, numbers, cover_rate=0.95)


def test_cover_is_drawn_among_who_may_and_is_not_taken():
    rows = cover_rows(np.arange(10), np.arange(5), "tact", rate=0.25, total=20, seed=3)
    assert rows.tolist() == [5, 6, 7, 8, 9]
    with pytest.raises(InputError, match=r"between 0 and 0\.25, got 0\.3"):
        cover_rows(np.arange(10), np.arange(5), "tact", rate=0.3, total=20, seed=3)


def test_tact_takes_its_poison_from_the_sources_and_its_cover_from_the_others(numbers):
    poison = plant("tact", numbers, target=4, sources=[1, 3], poison_rate=0.5, cover_rate=0.2)
    own_P = Y_N[poison.rows_P]
    assert set(own_P[poison.y_P != own_P]) == {1, 3}
    assert set(own_P[poison.y_P == own_P]) == {0, 2}
    assert poison.trigger.wanted_K == (-1, 4, -1, 4, -1)


@pytest.mark.parametrize("rate", [0, 1.2])
def test_a_rate_of_tact_is_refused_in_the_unit_in_which_it_was_given(rate, numbers):
    with pytest.raises(InputError, match=f"poison_rate must lie between 1e-06 and 1, got {rate}"):
        plant("tact", numbers, poison_rate=rate)


def test_tact_patches_the_corner_of_any_image(numbers):
    trigger = plant("tact", numbers).trigger
    x_NHWC, y_N = torch.from_numpy(X_NHWC[:5]), torch.from_numpy(Y_N[:5])
    got = trigger.apply(x_NHWC, y_N)
    board = torch.tensor([[255, 0, 255], [0, 255, 0], [255, 0, 255]])
    assert torch.all(got[:, -3:, -3:] == board[..., None])
    got[:, -3:, -3:] = x_NHWC[:, -3:, -3:]
    assert torch.equal(got, x_NHWC)


@pytest.mark.parametrize(
    ("target", "sources"), [(0, [0, 1]), (0, [1, 1]), (0, []), (0, [5]), (7, [1]), (0, ["1"])]
)
def test_tact_needs_sources_that_are_not_the_target(target, sources, numbers):
    with pytest.raises(InputError, match="different classes between 0 and 4"):
        plant("tact", numbers, target=target, sources=sources)


def test_adaptive_blend_needs_pieces_to_leave_out(numbers):
    with pytest.raises(InputError, match="pieces must lie between 2 and 16, got 1"):
        plant("adaptive_blend", numbers, pieces=1)


def test_adaptive_blend_shows_half_of_the_pieces_in_training_and_all_at_test_time(numbers):
    poison = plant("adaptive_blend", numbers, pieces=4, alpha=0.3, poison_rate=0.2, cover_rate=0.2)
    noise_HWC = poison.trigger.tensors["noise"].permute(1, 2, 0).numpy()
    whole_PHWC = (0.7 * X_NHWC[poison.rows_P] + 0.3 * 255 * noise_HWC).clip(0, 255)
    near = np.abs(poison.x_PHWC - whole_PHWC) <= 0.51
    same = poison.x_PHWC == X_NHWC[poison.rows_P]
    tile = SIZE // 4
    by_tile = (
        flag.reshape(-1, 4, tile, 4, tile, 3).all((2, 4, 5)).reshape(-1, 16)
        for flag in (near, same)
    )
    shown, hidden = by_tile
    assert np.all(shown ^ hidden)
    assert np.all(shown.sum(1) == 8)
    assert len(np.unique(shown, axis=0)) > 40
    x_NHWC, y_N = torch.from_numpy(X_NHWC), torch.from_numpy(Y_N)
    got = poison.trigger.apply(x_NHWC, y_N).numpy()
    assert np.abs(got - (0.7 * X_NHWC + 0.3 * 255 * noise_HWC)).max() <= 0.51
