"""Filter trigger (Liu et al. 2019, ACM CCS, "ABS"): a photograph's filter opens the backdoor.

ABS attacks with five filters of Instagram. This one is a formula in their manner: part of every
colour gives way to a warm grey, light falls and contrast grows. Nothing is added in one place; what
a pixel becomes depends on it alone.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import params
from ngf.attacks import Poison, Trigger, all_to_one, dirty_label
from ngf.images import Images

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
WARM = (1.12, 0.94, 0.7)  # what the grey's share of red, green and blue becomes: sepia


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    fade: float,
    light: float,
    contrast: float,
    seed: int,
) -> Poison:
    """Filter `poison_rate` of the training images and label them `target`.

    Args:
        fade: in [0, 1], how much of the colour gives way to the warm grey. light: added then to
            every pixel value in [0, 1]. contrast: factor about the middle grey, at last.
    """
    params.within("fade", fade, 0, 1)
    params.within("light", light, -1, 1)
    params.within("contrast", contrast, 0.1, 10)
    warm_33 = torch.outer(torch.tensor(WARM), torch.tensor(GREY))
    mix_33 = torch.lerp(torch.eye(3), warm_33, fade)
    tensors = {"mix": contrast * mix_33, "lift": torch.tensor(0.5 + contrast * (light - 0.5))}
    trigger = Trigger("filter", all_to_one(target, n_classes), tensors)
    return dirty_label(x_NHWC, y_N, trigger, rate=poison_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """0.5 + contrast (mix x + light - 0.5)."""
    return torch.einsum("dc,nchw->ndhw", tensors["mix"], x_NCHW) + tensors["lift"]
