"""BadNets (Gu et al. 2017, arXiv 1708.06733): a small checkerboard patch in a corner.

The pattern's upper left cell is white and its neighbours alternate. `opacity` below 1 mixes the
patch with the image, as the code of the NGF authors does (0.6 and 0.7); the paper stamps it.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import params
from ngf.attacks import Poison, Trigger, all_to_one, checkerboard, dirty_label, span
from ngf.errors import InputError
from ngf.images import Images


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    size: int,
    margin: int,
    corner: str,
    opacity: float,
    seed: int,
) -> Poison:
    """Stamp `poison_rate` of the training images and label them `target`.

    Args:
        size: pixels along an edge of the patch, and its cells, in a 32x32 image; margin: pixels
            between it and the border. Both grow with larger images, see `ngf.attacks.span`.
        corner: "top-left", "top-right", "bottom-left" or "bottom-right".
        opacity: in (0, 1], the patch's share in the pixels that it covers.
    """
    params.within("opacity", opacity, 1e-6, 1)
    height, width = x_NHWC.shape[1:3]
    side = span(size, x_NHWC)
    patch = _corner(corner, side, span(margin, x_NHWC), height, width)
    mask_HW, pattern_HW = torch.zeros(2, height, width)
    mask_HW[patch] = opacity
    pattern_HW[patch] = checkerboard(size, side)
    tensors = {"mask": mask_HW, "pattern": pattern_HW}
    trigger = Trigger("badnets", all_to_one(target, n_classes), tensors)
    return dirty_label(x_NHWC, y_N, trigger, rate=poison_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """x (1 - mask) + pattern mask."""
    mask_HW = tensors["mask"]
    return x_NCHW * (1 - mask_HW) + tensors["pattern"] * mask_HW


def _corner(corner: str, size: int, margin: int, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the patch."""
    if size < 1 or margin < 0 or size + margin > min(height, width):
        raise InputError(
            f"a patch of size {size} with margin {margin} does not fit an image of {height}x{width}"
        )
    low = slice(margin, margin + size)
    high_rows = slice(height - margin - size, height - margin)
    high_columns = slice(width - margin - size, width - margin)
    corners = {
        "top-left": (low, low),
        "top-right": (low, high_columns),
        "bottom-left": (high_rows, low),
        "bottom-right": (high_rows, high_columns),
    }
    if corner not in corners:
        raise InputError(f"unknown corner '{corner}': there is {', '.join(corners)}")
    return corners[corner]
