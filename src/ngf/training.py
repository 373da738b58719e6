"""Batches on the device, augmentation on whole batches, and one training loop for everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngf import params, trail
from ngf.device import autocast
from ngf.progress import track

Batch = tuple[Tensor, Tensor]
OnEpoch = Callable[[int, float], None]


def pixels(x_NHWC: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] as float [N, 3, H, W] in [0, 1]; a channels-last view, no copy."""
    return x_NHWC.permute(0, 3, 1, 2).float() / 255


def augment(x_NHWC: Tensor, *, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Move each image by up to `shift` pixels, its border mirrored, and mirror half where `flip`.

    One gather for the whole batch of uint8 images, whatever its size; nothing is padded.
    """
    count, height, width = x_NHWC.shape[:3]
    device = x_NHWC.device
    offset_2N = torch.randint(-shift, shift + 1, (2, count), generator=generator, device=device)
    rows_NH = _mirror(offset_2N[0, :, None] + torch.arange(height, device=device), height)
    columns_NW = _mirror(offset_2N[1, :, None] + torch.arange(width, device=device), width)
    if flip:
        mirrored_N = torch.rand(count, generator=generator, device=device) < 0.5
        columns_NW = torch.where(mirrored_N[:, None], columns_NW.flip(1), columns_NW)
    image_N = torch.arange(count, device=device)
    return x_NHWC[image_N[:, None, None], rows_NH[:, :, None], columns_NW[:, None, :]]


def _mirror(index: Tensor, size: int) -> Tensor:
    """Indices beyond either border, reflected back inside."""
    return size - 1 - (size - 1 - index.abs()).abs()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a data set's networks are trained: one section `train.<dataset>` of params.yaml.

    arch, model: the model plug-in and its options. shift: pixels of random translation.
    lr: the peak of the one-cycle schedule. The seeds differ, so that a benign victim is not
    the reference.
    """

    arch: str
    model: dict
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    shift: int
    reference_seed: int
    victim_seed: int

    def __post_init__(self) -> None:
        params.at_least(1, epochs=self.epochs)
        params.at_least(0, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


class Batches:
    """Endless augmented batches of a data set that lies on the device as a whole.

    Each pass is a new permutation; a pass of fewer images than `size` gives one smaller batch,
    otherwise the odd rest waits for the next pass.
    """

    def __init__(
        self, x_NHWC: Tensor, y_N: Tensor, *, size: int, shift: int, flip: bool, seed: int
    ) -> None:
        params.at_least(1, batch_size=size)
        params.within("shift", shift, 0, min(x_NHWC.shape[1:3]) - 1)
        self.x_NHWC, self.y_N = x_NHWC, y_N
        self.size = min(size, len(y_N))
        self.shift, self.flip = shift, flip
        self.generator = torch.Generator(x_NHWC.device).manual_seed(seed)
        self.per_epoch = len(y_N) // self.size

    def take(self, count: int) -> Iterator[Batch]:
        """`count` batches (pixels [B, 3, H, W] in [0, 1], labels [B])."""
        order_N = torch.empty(0, dtype=torch.int64, device=self.y_N.device)
        for _ in range(count):
            if len(order_N) < self.size:
                order_N = torch.randperm(
                    len(self.y_N), generator=self.generator, device=self.y_N.device
                )
            rows_B, order_N = order_N[: self.size], order_N[self.size :]
            x_BHWC = augment(
                self.x_NHWC[rows_B], shift=self.shift, flip=self.flip, generator=self.generator
            )
            yield pixels(x_BHWC), self.y_N[rows_B]


class Partner:
    """Somebody who sees each batch before the model does. This one changes nothing."""

    def show(self, x_NCHW: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """What the model is shown instead, pixels and labels, and a loss that is added to its own.

        Both may carry a gradient, which the backward pass of the step fills.
        """
        return x_NCHW, y_N, 0.0

    def step(self) -> None:
        """After the backward pass, beside the model's own step."""


ALONE = Partner()


def fit(
    model: nn.Module,
    batches: Batches,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    what: str,
    on_epoch: OnEpoch = lambda epoch, loss: None,
    partner: Partner = ALONE,
) -> nn.Module:
    """Minimise cross-entropy; the scheduler steps once a batch. Returns the model in eval mode."""
    model.train()
    device = batches.y_N.device
    steps = epochs * batches.per_epoch
    losses: list[Tensor] = []
    for batch in track(batches.take(steps), what, steps):
        x_BCHW, y_B, more = partner.show(*batch)
        with autocast(device):
            logits_BC = model(x_BCHW)
        loss = cross_entropy(logits_BC.float(), y_B) + more
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        partner.step()
        scheduler.step()
        losses.append(loss.detach())
        trail.mark(model, len(losses), steps)
        if len(losses) % batches.per_epoch == 0:
            mean = torch.stack(losses[-batches.per_epoch :]).mean().item()
            on_epoch(len(losses) // batches.per_epoch, mean)
    return model.eval()


def one_cycle(
    model: nn.Module, *, steps: int, lr: float, momentum: float, weight_decay: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Nesterov SGD under a one-cycle schedule (Smith & Topin 2017, arXiv 1708.07120)."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps + 1, pct_start=0.25, cycle_momentum=False
    )
    return optimizer, schedule
