"""What batch norm remembers of the training data, and what it should say instead.

A backdoored network's stored statistics still hold the poisoned training images. A share p of
triggered images, displaced by d in a channel, moves the stored mean by p d and widens the stored
variance by about p (1 - p) d². Clean images show neither, so stored against clean statistics is
evidence that needs no trigger and no target class. (Zheng et al. 2022, BNP, detect by this gap.)
The variance says which channels carry the trigger; the means, taken together, point from clean to
triggered activations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ngf.device import autocast
from ngf.models import batch_norms
from ngf.training import Batch

MAD_TO_STD = 1.4826  # of a normal distribution


def recalibrate(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> None:
    """Replace all running statistics by the average over `batches`; no gradient, no label.

    torch's own `update_bn` averages cumulatively, so every batch weighs the same.
    """
    with autocast(device):
        update_bn((x for x, _ in batches), model)
    model.eval()


@dataclass(frozen=True)
class Moments:
    """One batch norm's inputs over the clean split, a value a channel [C].

    error: standard error of the mean, with every clean image counted once, however many its views.
    """

    mean_C: Tensor
    var_C: Tensor
    error_C: Tensor


@torch.no_grad()
def input_moments(
    model: nn.Module, batches: Iterable[Batch], images: int, device: torch.device
) -> list[Moments]:
    """Moments of every batch norm's input over `batches`, the model in evaluation mode.

    Args:
        images: distinct images among the batches.
    """
    norms = batch_norms(model)
    sums = [torch.zeros(4, norm.num_features, dtype=torch.float64, device=device) for norm in norms]
    seen = torch.zeros(len(norms), 2, dtype=torch.float64)

    def collect(layer: int, x_NCHW: Tensor) -> None:
        x_NCHW = x_NCHW.double()
        of_image_NC = x_NCHW.mean((2, 3))
        sums[layer][0] += x_NCHW.sum((0, 2, 3))
        sums[layer][1] += x_NCHW.square().sum((0, 2, 3))
        sums[layer][2] += of_image_NC.sum(0)
        sums[layer][3] += of_image_NC.square().sum(0)
        seen[layer] += torch.tensor([x_NCHW.numel() / x_NCHW.shape[1], len(x_NCHW)])

    hooks = [
        norm.register_forward_pre_hook(lambda _, args, layer=layer: collect(layer, args[0]))
        for layer, norm in enumerate(norms)
    ]
    model.eval()
    try:
        for x_NCHW, _ in batches:
            with autocast(device):
                model(x_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for (total, squares, means, means_squared), (pixels, views) in zip(sums, seen, strict=True):
        var_C = squares / pixels - (total / pixels) ** 2
        between_C = means_squared / views - (means / views) ** 2
        error_C = (between_C.clamp_min(0) / images).sqrt()
        found.append(Moments((total / pixels).float(), var_C.float(), error_C.float()))
    return found


@dataclass(frozen=True)
class Evidence:
    """What one batch norm remembers that the clean split does not show, a value a channel [C].

    excess: of variance, 0 where there is none. shift: stored minus clean mean; for a poison rate p
    the displacement of triggered images is about shift / p. error: the shift's standard error.
    """

    excess_C: Tensor
    shift_C: Tensor
    error_C: Tensor


def evidence(model: nn.Module, clean: list[Moments]) -> list[Evidence]:
    """The evidence in every batch norm, in the order of `batch_norms`."""
    found = []
    for norm, moments in zip(batch_norms(model), clean, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        excess_C = excess_variance(norm.running_var, moments.var_C)
        found.append(Evidence(excess_C, norm.running_mean - moments.mean_C, moments.error_C))
    return found


def excess_variance(stored_C: Tensor, clean_C: Tensor) -> Tensor:
    """How far each channel's stored variance exceeds what its layer explains, [C], 0 for most.

    With q = stored / clean, a channel stands out where log q lies more than two robust standard
    deviations above the layer's median; its excess is q above that median. The median is capped
    at 0.3 and the deviation at 0.1, because a layer in which most channels carry the trigger
    would otherwise hide them; the baseline is capped at 1, because clean images that vary more
    than the training images did are no evidence.
    """
    tiny = torch.finfo(stored_C.dtype).tiny
    log_q_C = (stored_C.clamp_min(tiny) / clean_C.clamp_min(tiny)).log()
    median = log_q_C.median()
    deviation = MAD_TO_STD * (log_q_C - median).abs().median()
    stands_out_C = log_q_C > median.clamp_max(0.3) + 2 * deviation.clamp_max(0.1)
    excess_C = (log_q_C.exp() - median.clamp_max(0).exp()).clamp_min(0)
    return torch.where(stands_out_C, excess_C, 0)


@torch.no_grad()
def damp(model: nn.Module, found: list[Evidence], strength: float) -> None:
    """Shrink the scales of channels with excess variance e by (1 + e)^(-strength / 2), in place."""
    for norm, layer in zip(batch_norms(model), found, strict=True):
        norm.weight.mul_((1 + layer.excess_C) ** (-strength / 2))
