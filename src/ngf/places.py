"""Places: where in a window a patch lies.

What is found in a window (`exposure.py`) has the whole window to be in, and is mostly not the
patch: where it leads the sieved model hardly anywhere, a patch of few pixels and full contrast may
still lead it. So the same length is given to parts of the window, a sixth of the image's side each,
and what draws the sieved model from there stands for the backdoor.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ngf.exposure import PARTS, Along, Draw, Search, Suspicion, Within, led_to
from ngf.margins import Probability

EACH = 4  # images of a step in each place
DRAWN = 0.2  # probability of the class, from which on a patch was found
ALIKE = 0.5  # of the best one's, from which on another place counts too


def places(found_MCHW: Tensor) -> Search:
    """One displacement for each place in the windows of those that were found.

    A place is a sixth of either side; places overlap by half. Their length is that of the longest
    one that was found. One of no length fills no window.
    """
    height, width = found_MCHW.shape[2:]
    tall, wide = (max(1, round(side / PARTS)) for side in (height, width))
    corners = {
        corner
        for window_HW in found_MCHW.abs().sum(1) > 0
        if window_HW.any()
        for corner in itertools.product(
            _starts(window_HW.any(1), tall), _starts(window_HW.any(0), wide)
        )
    }
    mask_M1HW = torch.zeros(len(corners), 1, height, width)
    for mask_HW, (top, left) in zip(mask_M1HW[:, 0], sorted(corners), strict=True):
        mask_HW[top : top + tall, left : left + wide] = 1
    longest = found_MCHW.square().mean((1, 2, 3)).max().sqrt().item()
    return Within(longest, EACH, mask_M1HW=mask_M1HW)


def narrowed(
    found: Suspicion,
    model: nn.Module,
    copy: nn.Module,
    draw: Draw,
    *,
    moves: int,
    steps: int,
    most: int,
) -> Tensor:
    """What draws this model, a sieved one, to the class from places in the windows.

    At most so many `moves` [M, C, H, W] that draw it about alike. What was found in the windows
    itself, where no place draws it much, or not as much as that does.

    Args:
        found: in windows, and leads to one class. copy: judges, as in `ngf.exposure`. steps, most:
            see `ngf.exposure.suspect`.
    """
    if not found.moves_MCHW.any():
        return found.moves_MCHW
    search = places(found.moves_MCHW)
    placed_MCHW = led_to(model, found.target, draw, search, steps=steps, most=most)
    both_MCHW = torch.cat([found.moves_MCHW, placed_MCHW])
    batches = list(draw(max(len(both_MCHW), search.images(most)), steps))
    (said_MK,) = Along(copy, found.displace, both_MCHW, batches).strays(Probability(model))
    before, drawn_M = said_MK[:, found.target].tensor_split([len(found.moves_MCHW)])
    best = drawn_M.topk(min(moves, len(drawn_M)))
    if best.values[0] < max(DRAWN, before.max()):
        return found.moves_MCHW
    return placed_MCHW[best.indices[best.values >= ALIKE * best.values[0]]]


def _starts(within_S: Tensor, size: int) -> list[int]:
    """Where places of that size begin, in what is True: at every half of it, and at the end."""
    at = within_S.nonzero()[:, 0].tolist()
    first, last = at[0], max(at[0], at[-1] + 1 - size)
    return [*range(first, last, max(1, size // 2)), last]
