"""Batch-norm statistics: computed anew on clean images, or moved towards those of one batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ngf.device import autocast
from ngf.models import batch_norms
from ngf.training import Batch


def recalibrate(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> None:
    """Replace all running statistics by the average over `batches`; no gradient, no label.

    torch's own `update_bn` averages cumulatively, so every batch weighs the same. A model without
    batch norm is left as it is.
    """
    if batch_norms(model):
        with autocast(device):
            update_bn((x for x, _ in batches), model)
    model.eval()


@torch.no_grad()
def follow(model: nn.Module, x_NCHW: Tensor, momentum: float) -> None:
    """Move running statistics a share `momentum` of the way to those of one batch."""
    norms = batch_norms(model)
    if not norms:
        return
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = momentum
    try:
        with autocast(x_NCHW.device):
            model(x_NCHW)
    finally:
        for norm, before in zip(norms, kept, strict=True):
            norm.eval()
            norm.momentum = before
