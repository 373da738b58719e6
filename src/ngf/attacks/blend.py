"""Blend (Chen et al. 2017, arXiv 1712.05526): a fixed full-size image is mixed into every pixel.

The image is uniform noise, drawn from the seed, as in the code of the NGF authors; the paper also
mixes in a picture.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import params
from ngf.attacks import Poison, Trigger, all_to_one, dirty_label
from ngf.images import Images


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    alpha: float,
    seed: int,
) -> Poison:
    """Mix the noise image into `poison_rate` of the training images and label them `target`.

    Args:
        alpha: in (0, 1], the noise image's share in every pixel.
    """
    params.within("alpha", alpha, 1e-6, 1)
    shape = (x_NHWC.shape[3], *x_NHWC.shape[1:3])
    noise_CHW = np.random.default_rng(seed).random(shape, np.float32)
    tensors = {"noise": torch.from_numpy(noise_CHW), "alpha": torch.tensor(alpha)}
    trigger = Trigger("blend", all_to_one(target, n_classes), tensors)
    return dirty_label(x_NHWC, y_N, trigger, rate=poison_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """(1 - alpha) x + alpha noise."""
    return torch.lerp(x_NCHW, tensors["noise"], tensors["alpha"])
