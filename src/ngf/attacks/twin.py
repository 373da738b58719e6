"""Two backdoors in one victim: a patch and a mixed-in noise image, each with a target of its own.

Several attackers, or one with a spare: what opens one says nothing of the other, and a defense that
removes what it finds first leaves the second. Patch and noise are those of BadNets (Gu et al. 2017,
arXiv 1708.06733) and Blend (Chen et al. 2017, arXiv 1712.05526). Images of even classes show the
patch, those of odd classes the noise, in training as at test time; ASR counts both together, per
class it tells them apart.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import attacks, params
from ngf.attacks import Poison, Trigger
from ngf.attacks._patch import board, in_corner
from ngf.errors import InputError
from ngf.images import Images


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    targets: list[int],
    poison_rate: float,
    size: int,
    alpha: float,
    seed: int,
) -> Poison:
    """Trigger `poison_rate` of the training images, each by its class, and label them so.

    Args:
        targets: of the patch and of the noise. size: pixels along the patch's edge at 32x32, as
            many cells, see `ngf.attacks.span`. alpha: in (0, 1], the noise's share in a pixel.
    """
    params.within("alpha", alpha, 1e-6, 1)
    shape = (x_NHWC.shape[3], *x_NHWC.shape[1:3])
    noise_CHW = np.random.default_rng(seed).random(shape, np.float32)
    tensors = {
        "patch": board(size, x_NHWC),
        "noise": torch.from_numpy(noise_CHW),
        "alpha": torch.tensor(alpha),
    }
    trigger = Trigger("twin", _wanted(targets, n_classes), tensors)
    return attacks.dirty_label(x_NHWC, y_N, trigger, rate=poison_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The patch in the bottom right corner on even classes, (1 - alpha) x + alpha noise on odd."""
    patched_NCHW = in_corner(x_NCHW, tensors["patch"])
    mixed_NCHW = torch.lerp(x_NCHW, tensors["noise"], tensors["alpha"])
    return torch.where((y_N % 2 == 0)[:, None, None, None], patched_NCHW, mixed_NCHW)


def _wanted(targets: list[int], n_classes: int) -> tuple[int, ...]:
    known = all(0 <= label < n_classes for label in targets)
    if not (known and len(targets) == len(set(targets)) == 2 and n_classes > 2):
        raise InputError(
            f"targets must be two classes between 0 and {n_classes - 1}, of three or more, "
            f"got {targets}"
        )
    by_class = (targets[label % 2] for label in range(n_classes))
    return tuple(-1 if want == label else want for label, want in enumerate(by_class))
