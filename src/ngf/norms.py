"""Batch-norm statistics: computed anew on clean images, or held for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

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


@contextlib.contextmanager
def statistics_held(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm in train mode uses the batch's statistics and remembers none of them."""
    norms = list(batch_norms(model).values())
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
