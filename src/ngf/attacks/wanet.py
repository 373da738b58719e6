"""WaNet (Nguyen & Tran 2021, arXiv 2102.10369): every image is bent by one smooth warping field.

The field is uniform noise on a coarse grid, scaled to a mean absolute value of 1 and upsampled.
The attacker acts in training, as in the paper: beside the triggered images, `cross_ratio` times as
many are bent by the field plus fresh noise and keep their label (the "noise mode"), so that not
just any warping opens the backdoor.

Lengths are shares of the image: the paper's s = 0.5 moves a pixel of a 32x32 image by a quarter of
a pixel on average, and one of 224x224 by seven quarters. The noise is up to 2 s, as with the
paper's s, in each direction.

What differs from the paper: warped images are added to the batch instead of replacing some; field
and noise start stronger than they end (`head_start`); and the batch is warped after augmentation,
so that the field lies in training just where it lies in the test.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from ngf import params
from ngf.attacks import Attacker, Poison, Trigger, all_to_one, untouched
from ngf.attacks._in_batch import InBatch, shares
from ngf.images import Images
from ngf.models import Classifier

REFERENCE = 32  # pixels across an image of the paper's CIFAR-10, in whose units s is given
NOISE = 2  # the noise mode's noise in units of s


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    cross_ratio: float,
    head_start: float,
    k: int,
    s: float,
    grid_rescale: float,
    seed: int,
) -> Poison:
    """Draw the field; `join` adds warped copies labelled `target` to every batch.

    Args:
        poison_rate: warped copies, as a share of the batch.
        cross_ratio: noise-warped images with their own label, per triggered one.
        head_start: how many times as strong the field is when training starts.
        k: control points along an edge. s: the field's strength.
        grid_rescale: factor on the places from which pixels are read.
    """
    params.within("k", k, 2, min(x_NHWC.shape[1:3]))
    params.within("s", s, 1e-6, REFERENCE)
    params.within("grid_rescale", grid_rescale, 0.5, 1.5)
    plan = shares(poison_rate, poison_rate * cross_ratio, "cross_ratio", head_start)
    grid_HW2 = _grid(k, s, *x_NHWC.shape[1:3], seed=seed) * grid_rescale
    tensors = {"grid": grid_HW2.clamp(-1, 1), "noise": torch.tensor(NOISE * s / REFERENCE)}
    trigger = Trigger("wanet", all_to_one(target, n_classes), tensors)
    return untouched(x_NHWC, y_N, trigger, **plan)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Each pixel is read, between its neighbours, from where the grid points."""
    return _bend(x_NCHW, tensors["grid"].expand(len(x_NCHW), -1, -1, -1))


def join(planted: Poison, model: Classifier, *, steps: int, seed: int) -> Attacker:
    """Triggered and noise-warped images in every batch."""
    return InBatch(planted, model, apply, _decoys, _strengthen, steps=steps, seed=seed)


def _decoys(
    x_NCHW: Tensor, other_NCHW: Tensor, tensors: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    """Each image bent by the field plus noise of its own."""
    grid_HW2 = tensors["grid"]
    shape = (len(x_NCHW), *grid_HW2.shape)
    noise_NHW2 = 2 * torch.rand(shape, generator=generator, device=x_NCHW.device) - 1
    return _bend(x_NCHW, (grid_HW2 + noise_NHW2 * tensors["noise"]).clamp(-1, 1))


def _strengthen(tensors: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    grid_HW2 = tensors["grid"]
    own_HW2 = _own_places(*grid_HW2.shape[:2]).to(grid_HW2.device)
    grid_HW2 = torch.lerp(own_HW2, grid_HW2, factor).clamp(-1, 1)
    return {"grid": grid_HW2, "noise": tensors["noise"] * factor}


def _bend(x_NCHW: Tensor, grid_NHW2: Tensor) -> Tensor:
    return grid_sample(x_NCHW, grid_NHW2, padding_mode="border", align_corners=True)


def _grid(k: int, s: float, height: int, width: int, *, seed: int) -> Tensor:
    """Where each pixel is read, (x, y) in [-1, 1]: its own place and the field on top."""
    control_2KK = 2 * torch.rand(2, k, k, generator=torch.Generator().manual_seed(seed)) - 1
    control_2KK /= control_2KK.abs().mean()
    field_12HW = interpolate(control_2KK[None], (height, width), mode="bicubic", align_corners=True)
    return _own_places(height, width) + s / REFERENCE * field_12HW[0].permute(1, 2, 0)


def _own_places(height: int, width: int) -> Tensor:
    y_HW, x_HW = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack((x_HW, y_HW), 2)
