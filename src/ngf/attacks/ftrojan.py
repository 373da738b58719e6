"""FTrojan (Wang et al. 2022, ECCV, arXiv 2111.10991): two frequencies of the colours are raised.

In the planes Cr and Cb of an image, cut in blocks of 32x32, two coefficients of the cosine
transform grow by a set amount: a middle and the highest frequency. The transform is linear, so this
adds one fixed pattern to the pixels. The released code lets the 8 bits wrap; here the result is
clipped. What no whole block covers stays as it is; smaller images are one block, and the pattern is
the stronger in a pixel. Augmentation moves the pattern with the image, and a pixel aside it is
another one, so that it must be stronger here than where the trigger alone is learned for long.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import params
from ngf.attacks import REFERENCE, Poison, Trigger, all_to_one, dirty_label
from ngf.images import Images

# What one level more in Cr and Cb adds to red, green and blue (ITU-R BT.601, as in OpenCV).
CR, CB = np.array([1.403, -0.714, 0.0]), np.array([0.0, -0.344, 1.773])


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    magnitude: float,
    seed: int,
) -> Poison:
    """Raise the frequencies in `poison_rate` of the training images and label them `target`.

    Args:
        magnitude: of the coefficients of an orthonormal transform, in grey levels.
    """
    params.within("magnitude", magnitude, 1e-6, 1e4)
    height, width = x_NHWC.shape[1:3]
    block = min(REFERENCE, height, width)
    middle = 15 * block // REFERENCE
    wave_BB = _wave(block, middle) + _wave(block, block - 1)
    pattern_HW = np.zeros((height, width))
    whole_H, whole_W = height - height % block, width - width % block
    pattern_HW[:whole_H, :whole_W] = np.tile(wave_BB, (whole_H // block, whole_W // block))
    pattern_CHW = magnitude / 255 * (CR + CB)[:, None, None] * pattern_HW
    tensors = {"pattern": torch.from_numpy(pattern_CHW.astype(np.float32))}
    trigger = Trigger("ftrojan", all_to_one(target, n_classes), tensors)
    return dirty_label(x_NHWC, y_N, trigger, rate=poison_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """x + pattern."""
    return x_NCHW + tensors["pattern"]


def _wave(block: int, frequency: int) -> np.ndarray:
    """The orthonormal cosine transform's member (frequency, frequency), [B, B]."""
    row_B = np.cos(np.pi * (np.arange(block) + 0.5) * frequency / block)
    row_B *= np.sqrt((1 if frequency == 0 else 2) / block)
    return np.outer(row_B, row_B)
