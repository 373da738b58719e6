"""What the loops of several defenses share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngf import trail
from ngf.defenses import Clean
from ngf.device import autocast
from ngf.metrics import predict
from ngf.progress import track
from ngf.training import Batches

Loss = Callable[[Tensor, Tensor], Tensor]  # of pixels in [0, 1] and labels


def sgd(
    parameters: Iterable[Tensor], steps: int, *, lr: float, momentum: float, weight_decay: float = 0
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """SGD under one cosine that spans all steps."""
    optimizer = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))


def answers(model: Callable[[Tensor], Tensor], x_NCHW: Tensor) -> Tensor:
    """Logits in float32, computed in the precision that the processor has."""
    with autocast(x_NCHW.device):
        logits_NC = model(x_NCHW)
    return logits_NC.float()


def batches_of(clean: Clean, *, batch_size: int, shift: int, seed: int) -> Batches:
    return Batches(
        clean.x_NHWC, clean.y_N, size=batch_size, shift=shift, flip=clean.flip, seed=seed
    )


def descend(
    model: nn.Module,
    batches: Batches,
    steps: int,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    *,
    after: Callable[[], None] = lambda: None,
    finish: Callable[[], None] = lambda: None,
    what: str,
) -> None:
    """`steps` steps on the loss of a batch each.

    Args:
        after: once after each step, for what a step may not leave.
        finish: once after the last step and before it is marked, for what is learned beside the
            model and becomes part of it in the end.
    """
    shown = track(batches.take(steps), what, steps)
    for step, (x_BCHW, y_B) in enumerate(shown, 1):
        optimizer.zero_grad(set_to_none=True)
        loss(x_BCHW, y_B).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        after()
        if step == steps:
            finish()
        trail.mark(model, step, steps)


def mean_loss(model: Callable[[Tensor], Tensor], x_BCHW: Tensor, y_B: Tensor) -> Tensor:
    return cross_entropy(answers(model, x_BCHW), y_B)


def accuracy(model: nn.Module, clean: Clean) -> float:
    """On the clean split, in evaluation mode."""
    model.eval()
    right_N = predict({"model": model}, clean.x_NHWC)["model"] == clean.y_N
    return right_N.float().mean().item()
