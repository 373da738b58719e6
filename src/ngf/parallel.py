"""One training in several processes, a GPU each where there are some.

    torchrun --nproc-per-node 4 --no-python ngf train --dataset imagenet ...

The numbers are those of one process at the same batch size, but for rounding: every process draws
the whole batch, takes every n-th image of it, and adds up losses, gradients and the moments of
batch norm with the others. An attacker who takes part sees the whole batch in every process.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ngf.launch import rank, world

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx


def part() -> slice:
    """Of a batch, what this process takes."""
    return slice(rank(), None, world())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within it the processes can talk to each other."""
    if world() == 1:
        yield
        return
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def add_up(x: Tensor) -> Tensor:
    """The sum over all processes; gradients are added up on the way back."""
    summed: Tensor = _Sum.apply(x) if world() > 1 else x
    return summed


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Any) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


def told(found: Any) -> Any:
    """What the first process found: the others need not see its files."""
    if world() == 1:
        return found
    message = [found]
    torch.distributed.broadcast_object_list(message)
    return message[0]


@contextlib.contextmanager
def one_model(model: nn.Module) -> Iterator[nn.Module]:
    """What to call for logits: its gradients are means over processes, its batch norms see all."""
    if world() == 1:
        yield model
        return
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.forward = functools.partial(_normalised, norm)  # type: ignore[method-assign]
    try:
        yield nn.parallel.DistributedDataParallel(model)
    finally:
        for norm in norms:
            del norm.forward


def no_exchange(net: object) -> contextlib.AbstractContextManager[None]:
    """Within it gradients are gathered here and not averaged yet."""
    inner = getattr(net, "_orig_mod", net)  # what torch.compile wraps
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        return inner.no_sync()
    return contextlib.nullcontext()


def _normalised(norm: nn.BatchNorm2d, x_NCHW: Tensor) -> Tensor:
    """Batch norm over the images of all processes. `nn.SyncBatchNorm` needs GPUs."""
    if not norm.training:
        return nn.BatchNorm2d.forward(norm, x_NCHW)
    with torch.autocast(x_NCHW.device.type, enabled=False):
        x = x_NCHW.float()
        own = x.new_full((1,), x.numel() / x.shape[1])
        count = add_up(own)
        mean_C = add_up(x.sum((0, 2, 3))) / count
        away = x - mean_C[:, None, None]
        variance_C = add_up(away.square().sum((0, 2, 3))) / count
        _remember(norm, mean_C.detach(), (variance_C * count / (count - 1)).detach())
        y = away * (variance_C + norm.eps).rsqrt()[:, None, None]
        if norm.affine:
            y = y * norm.weight[:, None, None] + norm.bias[:, None, None]
    return y.to(x_NCHW.dtype)


@torch.no_grad()
def _remember(norm: nn.BatchNorm2d, mean_C: Tensor, variance_C: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean_C, momentum)
    norm.running_var.lerp_(variance_C, momentum)
