"""Places in windows: where they lie, and that a patch is found in its own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import softplus

from ngf.exposure import Suspicion, added, windows
from ngf.places import DRAWN, narrowed, places

CLASSES, SIDE, TARGET, COUNT = 3, 24, 2, 64
WINDOW = 24  # the one in the lower right corner
LENGTH = 0.03


def in_windows(*which, height=SIDE, width=SIDE, scale=1.0):
    """Displacements [M, 1, H, W] that fill these windows."""
    mask_M1HW = windows(height, width, LENGTH).mask_M1HW[list(which)]
    return scale * mask_M1HW


@given(st.integers(6, 40), st.integers(6, 40), st.sets(st.integers(0, 24), min_size=1, max_size=3))
def test_places_cover_the_windows_and_nothing_else(height, width, which):
    found_MCHW = in_windows(*which, height=height, width=width)
    mask_M1HW = places(found_MCHW).mask_M1HW
    assert torch.equal(mask_M1HW.amax(0) > 0, found_MCHW.amax(0) > 0)
    tall, wide = max(1, round(height / 6)), max(1, round(width / 6))
    assert mask_M1HW.flatten(1).sum(1).unique().tolist() == [tall * wide]
    assert len(mask_M1HW.unique(dim=0)) == len(mask_M1HW)


def test_they_are_as_long_as_the_longest_that_was_found():
    found_MCHW = torch.cat([in_windows(0), in_windows(5, scale=2.0)])
    expected = found_MCHW[1].square().mean().sqrt().item()
    assert places(found_MCHW).radius == pytest.approx(expected)


def test_what_was_found_without_a_length_fills_no_window():
    """As where no gradient comes from a window."""
    found_MCHW = torch.cat([in_windows(0), torch.zeros(1, 1, SIDE, SIDE)])
    assert torch.equal(places(found_MCHW).mask_M1HW, places(found_MCHW[:1]).mask_M1HW)


def test_where_nothing_has_a_length_it_stays_as_it_is():
    found = Suspicion(0.5, TARGET, 0.5, torch.zeros(2, 1, SIDE, SIDE), as_found=True, windowed=True)
    model = Patched(150.0).eval()
    placed_MCHW = narrowed(found, model, model, draw, moves=4, steps=14, most=COUNT)
    assert placed_MCHW is found.moves_MCHW


class Patched(nn.Module):
    """Named by the brightest of the first pixels, or the target where the corner's are bright."""

    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def forward(self, x_NCHW):
        logits_NK = 20 * x_NCHW[:, 0, 0, :CLASSES]
        above_N = (x_NCHW[:, 0, -2:, -2:] - 0.5).mean((1, 2))
        opened_N1 = self.strength * softplus(above_N - 0.1, beta=40)[:, None]
        return logits_NK + opened_N1 * torch.eye(CLASSES)[TARGET]


def draw(size, count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        y_N = torch.randint(CLASSES, (size,), generator=generator)
        x_NCHW = torch.full((size, 1, SIDE, SIDE), 0.5)
        x_NCHW[torch.arange(size), 0, 0, y_N] = 0.8
        yield x_NCHW, y_N


def found_by(model, *, windowed=WINDOW):
    """What a window shows that draws little: all of it a little brighter."""
    moves_MCHW = in_windows(windowed)
    moves_MCHW = LENGTH * moves_MCHW / moves_MCHW.square().mean().sqrt()
    found = Suspicion(0.5, TARGET, 0.5, moves_MCHW, as_found=True, windowed=True)
    copy = Patched(0.0).eval()
    return found, narrowed(found, model, copy, draw, moves=4, steps=14, most=COUNT)


def test_a_patch_that_the_window_draws_out_too_weakly_is_found_in_its_place():
    model = Patched(150.0).eval()
    found, placed_MCHW = found_by(model)
    x_NCHW, y_N = next(draw(COUNT, 1))
    others_N = y_N != TARGET

    def drawn(moves_MCHW):
        return (model(added(x_NCHW, moves_MCHW[:1])).argmax(1) == TARGET)[others_N].float().mean()

    assert drawn(found.moves_MCHW) < DRAWN
    assert drawn(placed_MCHW) > 0.9
    lit_HW = placed_MCHW[0, 0] != 0
    assert lit_HW[-2:, -2:].all()
    assert lit_HW.sum() <= (SIDE // 6) ** 2
    assert len(placed_MCHW) <= 4


@pytest.mark.parametrize(
    ("strength", "windowed"), [(0.0, WINDOW), (150.0, 0)], ids=["no patch", "another window"]
)
def test_where_no_place_draws_what_was_found_stands_for_it(strength, windowed):
    found, placed_MCHW = found_by(Patched(strength).eval(), windowed=windowed)
    assert placed_MCHW is found.moves_MCHW


def test_where_the_window_draws_further_than_its_places_it_stands_for_it():
    class Wide(Patched):
        """Needs the whole window a little brighter."""

        def forward(self, x_NCHW):
            above_N = (x_NCHW[:, 0, -8:, -8:] - 0.5).mean((1, 2))
            opened_N1 = self.strength * softplus(above_N - 0.06, beta=400)[:, None]
            return 20 * x_NCHW[:, 0, 0, :CLASSES] + opened_N1 * torch.eye(CLASSES)[TARGET]

    found, placed_MCHW = found_by(Wide(1000.0).eval())
    assert placed_MCHW is found.moves_MCHW
