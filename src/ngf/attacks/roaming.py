"""A patch in another place of every image (after Li et al. 2021, arXiv 2104.02361, "Backdoor Attack
in the Physical World").

They show the trigger shifted and shrunk in training, so that it opens the backdoor wherever a
camera sees it; here it is shifted alone, all over the image. No pixel belongs to the trigger, so a
search for one pattern in one place sees a part of it at most.
"""

import numpy as np
import torch
from torch import Tensor

from ngf.attacks import Poison, Trigger, all_to_one, dirty_label
from ngf.attacks._patch import board
from ngf.images import Images


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    size: int,
    seed: int,
) -> Poison:
    """Patch `poison_rate` of the training images somewhere and label them `target`.

    Args:
        size: pixels along the patch's edge at 32x32, as many cells; see `ngf.attacks.span`.
    """
    trigger = Trigger("roaming", all_to_one(target, n_classes), {"patch": board(size, x_NHWC)})
    return dirty_label(x_NHWC, y_N, trigger, rate=poison_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The patch covers a square; the sum of the image's pixels says which."""
    patch_SS = tensors["patch"]
    side, (height, width) = len(patch_SS), x_NCHW.shape[2:]
    levels_N = (x_NCHW * 255).round().long().sum((1, 2, 3))
    top_N = levels_N % (height - side + 1)
    left_N = levels_N // (height - side + 1) % (width - side + 1)
    down_NH = torch.arange(height, device=x_NCHW.device) - top_N[:, None]
    across_NW = torch.arange(width, device=x_NCHW.device) - left_N[:, None]
    inside_NHW = _within(down_NH, side)[:, :, None] & _within(across_NW, side)[:, None, :]
    rows_NH, columns_NW = down_NH.clamp(0, side - 1), across_NW.clamp(0, side - 1)
    shown_NHW = patch_SS[rows_NH[:, :, None], columns_NW[:, None, :]]
    return torch.where(inside_NHW[:, None], shown_NHW[:, None], x_NCHW)


def _within(offset: Tensor, side: int) -> Tensor:
    return (offset >= 0) & (offset < side)
