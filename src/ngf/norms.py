"""Batch-norm statistics, computed anew on clean images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
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
