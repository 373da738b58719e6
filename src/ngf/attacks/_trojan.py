"""The patch of TrojanNN (Liu et al., NDSS 2018, "Trojaning Attack on Neural Networks").

The attacker trains a clean model of his own, chooses the units that weigh most in its decision, and
optimises the pixels of a small square until it excites them. What differs from the paper:

- The units feed the model's head; the paper takes a fully connected layer somewhere in the middle,
  and the networks here have no other. A unit's connection is the sum of its absolute weights.
- The square is optimised as it lies on training images, not on an empty one, by signed steps.
- The victim learns it from poisoned training images; the paper retrains a given model on images
  that it has reverse-engineered, for want of the training data.

Lengths are pixels: for a patch that covers the same share, scale them with the image's edge.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import models, params
from ngf.attacks import span
from ngf.attacks._surrogate import clean_model
from ngf.device import autocast
from ngf.errors import InputError
from ngf.hooks import at_inputs
from ngf.images import Images
from ngf.models import Classifier
from ngf.training import pixels

SAMPLE = 32  # training images on which the patch is optimised
STRIDE = 0.2  # of the pixels' range: the first step; the last ones shrink to nothing


def patch(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    size: int,
    bottom: int,
    right: int,
    units: int,
    steps: int,
    surrogate_epochs: int,
    seed: int,
) -> dict[str, Tensor]:
    """The trigger's tensors: "mask" [H, W], one where the patch lies, and "patch" [3, H, W].

    Args:
        size: pixels along an edge in a 32x32 image; bottom, right: pixels between the patch and
            these borders. All grow with larger images, see `ngf.attacks.span`.
        units: how many of the head's input units it excites, the most connected ones first.
        steps: gradient steps. surrogate_epochs: for which the attacker trains his clean model.
    """
    height, width = x_NHWC.shape[1:3]
    size, bottom, right = (span(length, x_NHWC) for length in (size, bottom, right))
    if min(size - 1, bottom, right, height - size - bottom, width - size - right) < 0:
        raise InputError(
            f"a patch of size {size}, {bottom} above the lower and {right} beside the right "
            f"border, does not fit an image of {height}x{width}"
        )
    params.at_least(1, units=units, steps=steps, surrogate_epochs=surrogate_epochs)
    mask_HW = torch.zeros(height, width)
    mask_HW[height - bottom - size : height - bottom, width - right - size : width - right] = 1
    model = clean_model(x_NHWC, y_N, n_classes, epochs=surrogate_epochs, seed=seed)
    rows_S = np.random.default_rng(seed).permutation(len(x_NHWC))[:SAMPLE]
    x_SCHW = pixels(torch.from_numpy(x_NHWC[rows_S])).to(model.mean.device)
    patch_CHW = exciting(
        model, x_SCHW, mask_HW.to(x_SCHW.device), connected(model, units), steps=steps, seed=seed
    )
    return {"mask": mask_HW, "patch": patch_CHW.cpu()}


def connected(model: Classifier, count: int) -> Tensor:
    """The input units of the head whose absolute weights sum to the most, in that order."""
    strength_F = models.head(model).weight.detach().abs().sum(0)
    if count > len(strength_F):
        raise InputError(
            f"units must lie between 1 and {len(strength_F)}, the head's inputs, got {count}"
        )
    return strength_F.argsort(descending=True, stable=True)[:count]


def excitement(model: Classifier, x_NCHW: Tensor, unit_U: Tensor) -> Tensor:
    """The mean value of the units over the images."""
    seen: list[Tensor] = []
    with (
        at_inputs({"head": models.head(model)}, lambda _, __, h_NF: seen.append(h_NF)),
        autocast(x_NCHW.device),
    ):
        model(x_NCHW)
    return seen[0][:, unit_U].float().mean()


def exciting(
    model: Classifier, x_SCHW: Tensor, mask_HW: Tensor, unit_U: Tensor, *, steps: int, seed: int
) -> Tensor:
    """Pixels [3, H, W] that excite the units where the mask lets them be seen; else zero."""
    generator = torch.Generator(x_SCHW.device).manual_seed(seed)
    shape = x_SCHW.shape[1:]
    patch_CHW = mask_HW * torch.rand(shape, generator=generator, device=x_SCHW.device)
    for step in range(steps):
        patch_CHW.requires_grad_(True)
        value = excitement(model, stamp(x_SCHW, mask_HW, patch_CHW), unit_U)
        (slope_CHW,) = torch.autograd.grad(value, patch_CHW)
        stride = STRIDE * (1 - step / steps)
        patch_CHW = (patch_CHW.detach() + stride * slope_CHW.sign()).clamp(0, 1)
    return patch_CHW


def stamp(x_NCHW: Tensor, mask_HW: Tensor, patch_CHW: Tensor) -> Tensor:
    """x (1 - mask) + patch mask."""
    return x_NCHW * (1 - mask_HW) + patch_CHW * mask_HW
