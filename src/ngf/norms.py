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
    class_mean: the same mean for each of the K classes alone; images: how many of each.
    """

    mean_C: Tensor
    var_C: Tensor
    error_C: Tensor
    class_mean_KC: Tensor
    images_K: Tensor

    def mean_without(self, label: int) -> Tensor:
        """The mean over all images that are not of one class [C]."""
        weight_K = self.images_K.clone()
        weight_K[label] = 0
        return (weight_K @ self.class_mean_KC) / weight_K.sum()


@torch.no_grad()
def input_moments(
    model: nn.Module, batches: Iterable[Batch], labels_N: Tensor, n_classes: int
) -> list[Moments]:
    """Moments of every batch norm's input over `batches`, the model in evaluation mode.

    Args:
        labels_N: of the distinct images among the batches.
    """
    device = labels_N.device
    norms = batch_norms(model)
    totals = [_Totals(n_classes, norm.num_features, device) for norm in norms]
    shown: list[Tensor] = []  # the labels of the batch that passes

    hooks = [
        norm.register_forward_pre_hook(lambda _, args, total=total: total.add(args[0], shown[-1]))
        for norm, total in zip(norms, totals, strict=True)
    ]
    model.eval()
    try:
        for x_NCHW, y_N in batches:
            shown[:] = [y_N]
            with autocast(device):
                model(x_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return [total.moments(torch.bincount(labels_N, minlength=n_classes)) for total in totals]


class _Totals:
    """Running sums of one batch norm's inputs, in float64."""

    def __init__(self, n_classes: int, channels: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.squares_C, self.means_squared_C = zeros(channels), zeros(channels)
        self.means_KC, self.views_K = zeros(n_classes, channels), zeros(n_classes)
        self.pixels = 0

    def add(self, x_NCHW: Tensor, y_N: Tensor) -> None:
        x_NCHW = x_NCHW.double()
        mean_NC = x_NCHW.mean((2, 3))
        self.squares_C += x_NCHW.square().sum((0, 2, 3))
        self.means_squared_C += mean_NC.square().sum(0)
        self.means_KC.index_add_(0, y_N, mean_NC)
        self.views_K += torch.bincount(y_N, minlength=len(self.views_K))
        self.pixels += x_NCHW.numel() // x_NCHW.shape[1]

    def moments(self, images_K: Tensor) -> Moments:
        views = self.views_K.sum()
        mean_C = self.means_KC.sum(0) / views
        var_C = self.squares_C / self.pixels - mean_C**2
        between_C = (self.means_squared_C / views - mean_C**2).clamp_min(0)
        error_C = (between_C / images_K.sum()).sqrt()
        shown_K = images_K * (self.views_K > 0)
        class_mean_KC = self.means_KC / self.views_K.clamp_min(1)[:, None]
        return Moments(
            mean_C.float(), var_C.float(), error_C.float(), class_mean_KC.float(), shown_K.float()
        )


@dataclass(frozen=True)
class Evidence:
    """What one batch norm remembers that the clean split does not show, a value a channel [C].

    excess: of variance, 0 where there is none. shift: stored minus clean mean; for a poison rate p
    triggered images are displaced by about shift / p. error: the shift's standard error.
    """

    excess_C: Tensor
    shift_C: Tensor
    error_C: Tensor


def evidence(model: nn.Module, clean: list[Moments], without: int | None = None) -> list[Evidence]:
    """The evidence in every batch norm, in the order of `batch_norms`.

    Args:
        without: a class to leave out of the clean mean.
    """
    found = []
    for norm, moments in zip(batch_norms(model), clean, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        excess_C = excess_variance(norm.running_var, moments.var_C)
        mean_C = moments.mean_C if without is None else moments.mean_without(without)
        found.append(Evidence(excess_C, norm.running_mean - mean_C, moments.error_C))
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
