"""Batches on the device, augmentation on whole batches, and one training loop for everybody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngf import checkpoint, launch, parallel, params, trail
from ngf.checkpoint import Checkpoint
from ngf.device import autocast, compiled
from ngf.images import Streamed, batches_of
from ngf.progress import track

Batch = tuple[Tensor, Tensor]
OnEpoch = Callable[[int, float], None]
EVERYTHING = slice(None)


def pixels(x_NHWC: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] as float [N, 3, H, W] in [0, 1]; a channels-last view, no copy."""
    return x_NHWC.permute(0, 3, 1, 2).float() / 255


def augment(x_NHWC: Tensor, *, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Move each image by up to `shift` pixels, its border mirrored, and mirror half if `flip`."""
    drawn = _draw_moves(len(x_NHWC), shift, flip, generator)
    return _moved(x_NHWC, *drawn)


def _draw_moves(
    count: int, shift: int, flip: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Offsets [2, N] down and to the right, and which images are mirrored [N]."""
    device = generator.device
    offset_2N = torch.randint(-shift, shift + 1, (2, count), generator=generator, device=device)
    return offset_2N, torch.rand(count, generator=generator, device=device) < 0.5 if flip else None


def _moved(x_NHWC: Tensor, offset_2N: Tensor, mirrored_N: Tensor | None) -> Tensor:
    """One gather for the whole batch of uint8 images, whatever its size; nothing is padded."""
    count, height, width = x_NHWC.shape[:3]
    device = x_NHWC.device
    rows_NH = _mirror(offset_2N[0, :, None] + torch.arange(height, device=device), height)
    columns_NW = _mirror(offset_2N[1, :, None] + torch.arange(width, device=device), width)
    if mirrored_N is not None:
        columns_NW = torch.where(mirrored_N[:, None], columns_NW.flip(1), columns_NW)
    image_N = torch.arange(count, device=device)
    return x_NHWC[image_N[:, None, None], rows_NH[:, :, None], columns_NW[:, None, :]]


def _mirror(index: Tensor, size: int) -> Tensor:
    """Indices beyond either border, reflected back inside."""
    return size - 1 - (size - 1 - index.abs()).abs()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a data set's networks are trained: one section `train.<dataset>` of params.yaml.

    arch, model: the model plug-in and its options. start: the weights to begin with, published
    ones by name or a file (`ngf.foreign.start`); null: random ones. shift: pixels of random
    translation. lr: the peak of the one-cycle schedule. The seeds differ, so that a benign victim
    is not the reference. accumulate, compile: see `Means`; checkpoint: epochs between two, 0 for
    none.
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
    accumulate: int = 1
    checkpoint: int = 1
    compile: bool = False
    start: str | None = None

    def __post_init__(self) -> None:
        params.at_least(1, epochs=self.epochs, accumulate=self.accumulate)
        params.at_least(0, checkpoint=self.checkpoint)
        params.at_least(0, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


class Batches:
    """Endless augmented batches of a data set on the device.

    Each pass is a new permutation; a pass of fewer images than `size` gives one smaller batch,
    otherwise the odd rest waits for the next pass.
    """

    def __init__(
        self,
        x_NHWC: Tensor | Streamed,
        y_N: Tensor,
        *,
        size: int,
        shift: int,
        flip: bool,
        seed: int,
    ) -> None:
        params.at_least(1, batch_size=size)
        params.within("shift", shift, 0, min(x_NHWC.shape[1:3]) - 1)
        self.x_NHWC, self.y_N = x_NHWC, y_N
        self.size = min(size, len(y_N))
        self.shift, self.flip = shift, flip
        self.generator = torch.Generator(x_NHWC.device).manual_seed(seed)
        self.per_epoch = len(y_N) // self.size

    def take(self, count: int, part: slice = EVERYTHING) -> Iterator[Batch]:
        """`count` batches (pixels [B, 3, H, W] in [0, 1], labels [B]).

        Args:
            part: of each batch those images alone. The others are not read, but what is drawn for
                them is, so that several processes share a batch as one would make it.
        """
        while count > 0:
            order_N = torch.randperm(
                len(self.y_N), generator=self.generator, device=self.y_N.device
            )
            whole = order_N.split(self.size)[: min(count, self.per_epoch)]
            rows_KB = [rows_B[part] for rows_B in whole]
            for rows_B, x_BHWC in zip(rows_KB, batches_of(self.x_NHWC, rows_KB), strict=True):
                offset_2N, mirrored_N = _draw_moves(
                    self.size, self.shift, self.flip, self.generator
                )
                mirrored_B = None if mirrored_N is None else mirrored_N[part]
                yield pixels(_moved(x_BHWC, offset_2N[:, part], mirrored_B)), self.y_N[rows_B]
            count -= len(whole)


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


@dataclass(frozen=True)
class Means:
    """How a training is carried out; none of it changes what is learned but for rounding.

    accumulate: parts of a batch that go through the network one after the other, where the whole
        does not fit; only batch norm tells, which sees a part at a time. compile: by torch.compile.
    checkpoint: where to go on from after a kill.
    """

    accumulate: int = 1
    compile: bool = False
    checkpoint: Checkpoint | None = None


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
    means: Means = Means(),
) -> nn.Module:
    """Minimise cross-entropy; the scheduler steps once a batch. Returns the model in eval mode."""
    model.train()
    steps = epochs * batches.per_epoch
    moving = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "partner": partner}
    moving["batches"] = batches.generator
    losses = _gone_on(moving, means.checkpoint)
    for epoch in range(1, len(losses) // batches.per_epoch + 1):
        on_epoch(epoch, _mean_of(losses, epoch, batches.per_epoch))
    # Whoever takes part sees whole batches, in every process.
    part = parallel.part() if type(partner).show is Partner.show else EVERYTHING
    rest = batches.take(steps - len(losses), part)
    with parallel.one_model(model) as net:
        called = compiled(net) if means.compile else net
        for batch in track(rest, what, steps - len(losses)):
            x_BCHW, y_B, more = partner.show(*batch)
            count = batches.size if part == parallel.part() else len(y_B)
            if part != parallel.part():
                x_BCHW, y_B = x_BCHW[parallel.part()], y_B[parallel.part()]
            optimizer.zero_grad(set_to_none=True)
            loss = _backward(called, (x_BCHW, y_B, more), count, means.accumulate)
            _average(checkpoint.learned(partner))
            optimizer.step()
            partner.step()
            scheduler.step()
            losses.append(loss)
            trail.mark(model, len(losses), steps)
            if len(losses) % batches.per_epoch == 0:
                epoch = len(losses) // batches.per_epoch
                on_epoch(epoch, _mean_of(losses, epoch, batches.per_epoch))
                if epoch < epochs:
                    _keep(moving, losses, epoch, means.checkpoint)
    return model.eval()


def _backward(
    net: Callable[[Tensor], Tensor],
    batch: tuple[Tensor, Tensor, Tensor | float],
    count: int,
    parts: int,
) -> Tensor:
    """Gradients of the mean loss of a batch that has `count` images in all processes.

    Returns that loss, as it is the same in every process.
    """
    x_BCHW, y_B, more = batch
    total = torch.zeros((), device=y_B.device)
    pieces = list(zip(x_BCHW.tensor_split(parts), y_B.tensor_split(parts), strict=True))
    for number, (x_PCHW, y_P) in enumerate(pieces, 1):
        last = number == len(pieces)
        with contextlib.nullcontext() if last else parallel.no_exchange(net):
            with autocast(y_B.device):
                logits_PC = net(x_PCHW)
            # Processes average their gradients, and this mean is over all images.
            share = launch.world() / count
            loss = cross_entropy(logits_PC.float(), y_P, reduction="sum") * share
            if last:
                loss = loss + more
            loss.backward(retain_graph=x_PCHW.requires_grad and not last)
        total += loss.detach()
    return parallel.add_up(total) / launch.world()


def _average(learned: Sequence[Tensor]) -> None:
    for tensor in learned:
        if tensor.grad is not None:
            tensor.grad = parallel.add_up(tensor.grad) / launch.world()


def _mean_of(losses: Sequence[Tensor], epoch: int, per_epoch: int) -> float:
    return torch.stack(list(losses[(epoch - 1) * per_epoch : epoch * per_epoch])).mean().item()


def _gone_on(moving: Mapping[str, Any], kept: Checkpoint | None) -> list[Tensor]:
    """The losses of the steps that were made already, and everything as it was after them."""
    found = parallel.told(kept.read() if kept and launch.rank() == 0 else None)
    if found is None:
        return []
    for name, thing in moving.items():
        checkpoint.restore(thing, found[name])
    torch.set_rng_state(found["chance"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(found["chance_cuda"])
    return list(found["losses"].to(moving["batches"].device))


def _keep(
    moving: Mapping[str, Any], losses: Sequence[Tensor], epoch: int, kept: Checkpoint | None
) -> None:
    if kept is None or not kept.every or epoch % kept.every:
        return
    content = {name: checkpoint.state(thing) for name, thing in moving.items()}
    content |= {"losses": torch.stack(list(losses)).cpu(), "chance": torch.get_rng_state()}
    if torch.cuda.is_available():
        content["chance_cuda"] = torch.cuda.get_rng_state()
    kept.write(content)


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
