"""What batch norm remembers of the training data, and what it should say instead.

A backdoored network's stored variances still hold the poisoned training images: a share p of
triggered images whose channel mean lies d away widens a channel's variance by about p(1-p)d².
Clean images do not show that variance, so stored against clean variance is evidence that needs
neither the trigger nor the target class (detection by this gap: Zheng et al. 2022, BNP).
"""

from __future__ import annotations

from collections.abc import Iterable

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


@torch.no_grad()
def input_variances(
    model: nn.Module, batches: Iterable[Batch], device: torch.device
) -> list[Tensor]:
    """Each batch norm's input variance [C] over `batches`, the model in evaluation mode."""
    norms = batch_norms(model)
    sums = [torch.zeros(3, norm.num_features, dtype=torch.float64, device=device) for norm in norms]

    def collect(total: Tensor, x_NCHW: Tensor) -> None:
        x_NCHW = x_NCHW.double()
        total[0] += x_NCHW.numel() // x_NCHW.shape[1]
        total[1] += x_NCHW.sum((0, 2, 3))
        total[2] += x_NCHW.square().sum((0, 2, 3))

    hooks = [
        norm.register_forward_pre_hook(lambda _, args, total=total: collect(total, args[0]))
        for norm, total in zip(norms, sums, strict=True)
    ]
    model.eval()
    try:
        for x_NCHW, _ in batches:
            with autocast(device):
                model(x_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return [(squares / n - (total / n) ** 2).float() for n, total, squares in sums]


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
def damp(model: nn.Module, clean_variances: list[Tensor], strength: float) -> float:
    """Shrink the scales of channels with excess variance e by (1 + e)^(-strength / 2), in place.

    Returns the sum of all excess, a warning sign by itself.
    """
    total = 0.0
    for norm, clean_C in zip(batch_norms(model), clean_variances, strict=True):
        assert norm.running_var is not None
        excess_C = excess_variance(norm.running_var, clean_C)
        norm.weight.mul_((1 + excess_C) ** (-strength / 2))
        total += excess_C.sum().item()
    return total
