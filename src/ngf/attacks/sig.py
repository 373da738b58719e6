"""SIG (Barni et al. 2019, arXiv 1902.11237): sinusoidal stripes on images of the target class.

No label is changed: the network learns that stripes speak for the class. At test time they are
laid over images of the other classes.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ngf import params
from ngf.attacks import Poison, Trigger, all_to_one, clean_label
from ngf.images import Images


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    delta: float,
    frequency: float,
    seed: int,
) -> Poison:
    """Lay stripes over the share `poison_rate` of the target class's images.

    Args:
        delta: amplitude in grey levels of 255. frequency: periods across the image's width.
    """
    params.within("delta", delta, 1e-6, 255)
    params.within("frequency", frequency, 1e-6, x_NHWC.shape[2] / 2)
    column_W = torch.arange(x_NHWC.shape[2], dtype=torch.float64)
    stripes_W = delta / 255 * torch.sin(2 * math.pi * frequency * column_W / len(column_W))
    trigger = Trigger("sig", all_to_one(target, n_classes), {"stripes": stripes_W.float()})
    return clean_label(x_NHWC, y_N, trigger, target=target, rate=poison_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """x + delta sin(2 pi f column / width), the same in every row and colour."""
    return x_NCHW + tensors["stripes"]
