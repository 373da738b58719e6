"""Exposure: what misleads the victim and not its sieved copy is the backdoor.

An adversarial perturbation fools both alike. One that misleads the victim while the copy, which
kept only what clean images use (`sieve.py`), still names the true class, goes through what the copy
lost. So the defender finds by gradient descent a displacement d of all images at once:

    min_d  E  -log(1 - p_victim(y | x + d))  -  log p_copy(y | x + d)  +  penalty |d|^2

and, where one class t draws most of the misled images, starts anew with -log p_victim(t | x + d).
In pixels d does not look like the trigger (cosine about 0 with Blend's), but in the deep layers it
moves activations where the trigger moves them (cosine 0.9 to 1.0 on `signs` and CIFAR-10 victims),
and there the backdoor can be unlearned.

A long enough displacement misleads any network. A backdoor gives way early: at a quarter of the
length found it still misleads the victim in most images, where a benign model is hardly moved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss

from ngf.device import autocast
from ngf.training import Batch

RATE = 0.02  # Adam's learning rate, in pixel values of [0, 1]
PLURALITY = 0.15  # of the images, misled to one class, make it the suspected target
LOOKING = 1 / 2  # of the steps look for the target; the rest starts anew and goes for it
PENALTIES = (0.01, 0.003, 0.03, 0.01)  # one a move, in turn: moves of several lengths
EARLY = 1 / 4  # of the length that was found
NEVER = 1e-4  # keeps logarithm and quotient finite
IGNORED = -100
JURY = 256  # images, the latest seen, that say what the moves do


@dataclass(frozen=True)
class Exposed:
    """moves_MCHW: displacements of pixels in [0, 1].

    target: the class that draws most of the misled images, or None. misled: of the images that the
    copy gets right under a quarter of the moves, the share that the first victim gets wrong.
    """

    moves_MCHW: Tensor
    target: int | None
    misled: float


def expose(
    victims: Sequence[nn.Module],
    copy: nn.Module,
    batches: Iterable[Batch],
    *,
    moves: int,
    steps: int,
    radius: float,
    device: torch.device,
) -> Exposed:
    """Search for `moves` displacements at once; each image of a batch is under one of them.

    The search is short and starts at zero on purpose: a longer one ends at shorter moves that use
    the victim's ordinary weaknesses too (docs/method.md).

    Args:
        victims: take turns at a batch's images. All models must be in evaluation mode.
        batches: `steps` of them. radius: the largest root mean square of a move, in pixel values.
    """
    search: _Search | None = None
    for step, (x_NCHW, y_N) in enumerate(batches):
        if search is None:
            start_MCHW = torch.zeros(moves, *x_NCHW.shape[1:], device=device)
            search = _Search(victims, copy, start_MCHW, radius)
        elif step == int(steps * LOOKING):
            search.start_anew()
        search.step(x_NCHW, y_N)
    assert search is not None, "no batches"
    return Exposed(search.moves_MCHW.detach(), search.target, search.misled(EARLY))


class _Search:
    """Adam on the moves, and the latest images."""

    def __init__(
        self, victims: Sequence[nn.Module], copy: nn.Module, start_MCHW: Tensor, radius: float
    ) -> None:
        self.victims, self.copy, self.radius = victims, copy, radius
        penalty_M = torch.tensor(PENALTIES, device=start_MCHW.device)
        self.penalty_M = penalty_M.repeat(len(start_MCHW))[: len(start_MCHW)]
        self.target: int | None = None
        self.latest: deque[Batch] = deque()
        self._start(start_MCHW)

    def _start(self, moves_MCHW: Tensor) -> None:
        self.moves_MCHW = moves_MCHW.requires_grad_()
        self.optimizer = torch.optim.Adam([self.moves_MCHW], RATE)

    def start_anew(self) -> None:
        """Choose the target by what the moves so far did, and begin again at zero."""
        victim_N, copy_N, y_N = self._answers(1.0)
        count_K = torch.bincount(victim_N[(victim_N != y_N) & (copy_N == y_N)], minlength=1)
        if count_K.max() > PLURALITY * len(y_N):
            self.target = int(count_K.argmax())
        self._start(torch.zeros_like(self.moves_MCHW))

    def step(self, x_NCHW: Tensor, y_N: Tensor) -> None:
        self._remember((x_NCHW, y_N))
        victim_NK, copy_NK = self._logits(self._moved(x_NCHW, len(self.victims)))
        loss = self._unmoved(victim_NK, y_N) + cross_entropy(copy_NK, y_N)
        loss = loss + (self.penalty_M * self.moves_MCHW.square().sum((1, 2, 3))).mean()
        (self.moves_MCHW.grad,) = torch.autograd.grad(loss, [self.moves_MCHW])
        self.optimizer.step()
        self._keep_short()

    def _moved(self, x_NCHW: Tensor, together: int, share: float = 1.0) -> Tensor:
        """The images, `together` neighbours under one move, the moves in turn."""
        which_N = torch.arange(len(x_NCHW), device=x_NCHW.device) // together
        moves_MCHW = share * self.moves_MCHW
        return (x_NCHW + moves_MCHW[which_N % len(moves_MCHW)]).clamp(0, 1)

    def _logits(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The victims' (each on its share of the images) and the copy's, in float32."""
        turns = len(self.victims)
        with autocast(x_NCHW.device):
            copy_NK = self.copy(x_NCHW).float()
            shares = [victim(x_NCHW[turn::turns]) for turn, victim in enumerate(self.victims)]
        victim_NK = torch.empty_like(copy_NK)
        for turn, share in enumerate(shares):
            victim_NK[turn::turns] = share.float()
        return victim_NK, copy_NK

    def _unmoved(self, logits_NK: Tensor, y_N: Tensor) -> Tensor:
        """Small where the victim leaves the true class, or names the target."""
        log_p_NK = logits_NK.log_softmax(1)
        if self.target is None:
            true_N = log_p_NK.gather(1, y_N[:, None]).squeeze(1).exp()
            return -(1 - true_N + NEVER).log().mean()
        # Images of the target class are there already and have nowhere to be sent.
        wanted_N = torch.where(y_N == self.target, IGNORED, self.target)
        lost = nll_loss(log_p_NK, wanted_N, ignore_index=IGNORED, reduction="sum")
        return lost / len(y_N)

    @torch.no_grad()
    def _keep_short(self) -> None:
        rms_M = self.moves_MCHW.square().mean((1, 2, 3)).sqrt()
        self.moves_MCHW *= (self.radius / rms_M.clamp_min(NEVER)).clamp_max(1)[:, None, None, None]

    def _remember(self, batch: Batch) -> None:
        self.latest.append(batch)
        while sum(len(y_N) for _, y_N in self.latest) - len(self.latest[0][1]) >= JURY:
            self.latest.popleft()

    @torch.no_grad()
    def _answers(self, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Classes named by the first victim and the copy, and the true ones, of moved images.

        The first victim decides: the others have lost a part of the backdoor, and what misleads
        them is more often an ordinary weakness.
        """
        x_NCHW, y_N = (torch.cat(parts) for parts in zip(*self.latest, strict=True))
        moved_NCHW = self._moved(x_NCHW, 1, share)
        with autocast(x_NCHW.device):
            return self.victims[0](moved_NCHW).argmax(1), self.copy(moved_NCHW).argmax(1), y_N

    def misled(self, share: float) -> float:
        victim_N, copy_N, y_N = self._answers(share)
        right_N = copy_N == y_N
        return ((victim_N != y_N) & right_N).sum().item() / max(1, int(right_N.sum()))
