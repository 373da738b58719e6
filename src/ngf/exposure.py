"""Exposure: which class the victim is drawn to more easily than a copy that was sieved.

An adversarial displacement fools both alike. One that draws the victim to a class while the copy,
which kept only what clean images use (`sieve.py`), still names the true one goes through what the
copy lost. For every class t, one displacement d of all images is found by gradient descent:

    min_d  E  -log p_victim(t | x + d)  -  log p_copy(y | x + d)        rms(d) <= radius

A benign model gives way to all classes about alike; a backdoored one gives way to its target first.
So the best class is compared with the second best, on a short radius, where most triggers show, and
on a long one, where stripes and the like do (docs/method.md). Searching each class by itself is
what Neural Cleanse (Wang et al. 2019) does with masks; the copy is what makes weak triggers show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngf.device import autocast
from ngf.training import Batch

Draw = Callable[[int, int], Iterable[Batch]]  # (images of a batch, batches)

RADII = (0.02, 0.07)  # root mean square of a displacement, in pixel values of [0, 1]
FIRST, LAST = 1.0, 0.05  # length of a step, in radii; in between linear
MOMENTUM = 0.8
PER = 8  # images under each displacement in a batch
GROUP = 32  # displacements that are searched together
SHORTLIST, REPEATS = 3, 4  # classes of each radius that are drawn again, and how often
ROUGHLY = 0.3  # of the steps suffice for the shortlist
LITTLE = 0.02  # a difference of draws below it is noise
NEVER = 1e-12


@dataclass(frozen=True)
class Suspicion:
    """target: the class that draws most. gap: how much more than the next one, in [0, 1].

    left: how much it still draws the sieved model: 0 no more than a usual class, 1 as much as the
    most attractive of the others, or more.
    """

    target: int
    gap: float
    left: float


def suspect(
    victim: nn.Module,
    sieved: nn.Module,
    copy: nn.Module,
    draw: Draw,
    *,
    classes: Sequence[int],
    steps: int,
    doubt: tuple[float, float] = (0.0, 0.0),
    group: int = GROUP,
) -> Suspicion:
    """The most suspicious class. All models must be in evaluation mode; they are left as they are.

    Args:
        classes: those that are searched, at least two. doubt: a gap from the one up to the other is
            asked for once more. group: displacements that are searched together, with `PER` images
            each.

    A class's draw is the mean probability that the victim gives it on displaced images of other
    classes, those counted as 0 that the copy gets wrong. One displacement says little about its
    class, so the first few classes of each radius are drawn again, several times each. The largest
    of many gaps is large by chance now and then; in doubt the same class must lie ahead of the same
    others once more, on displacements of its own, and the smaller gap counts.
    """
    models = (victim, sieved, copy)
    every = [(radius, target) for radius in RADII for target in classes]
    rough = max(1, round(ROUGHLY * steps))
    victim_RK, sieved_RK = _draws(models, draw, every, rough, group).view(2, len(RADII), -1)
    few = min(SHORTLIST, len(classes))
    short_RS = victim_RK.topk(few, dim=1).indices
    again = [
        (radius, classes[int(place)])
        for radius, row_S in zip(RADII, short_RS, strict=True)
        for place in row_S
    ]
    draws_2P = _draws(models, draw, again * REPEATS, steps, group).view(2, REPEATS, -1).mean(1)
    victim_RS, left_RS = draws_2P.view(2, len(RADII), few)
    best_R2 = victim_RS.topk(2, dim=1)
    gap_R = best_R2.values[:, 0] - best_R2.values[:, 1]
    radius = int(gap_R.argmax())
    place = int(best_R2.indices[radius, 0])
    gap = gap_R[radius].item()
    if doubt[0] <= gap < doubt[1]:
        pairs = [(RADII[radius], classes[int(one)]) for one in short_RS[radius]]
        anew_S = _draws(models, draw, pairs * REPEATS, steps, group)[0].view(REPEATS, -1).mean(0)
        others_S = torch.cat([anew_S[:place], anew_S[place + 1 :]])
        gap = min(gap, max(0.0, (anew_S[place] - others_S.max()).item()))
    first = int(short_RS[radius, place])  # its place among the classes
    others_K = torch.cat([sieved_RK[radius, :first], sieved_RK[radius, first + 1 :]])
    usual, most = others_K.median(), others_K.max()
    left = ((left_RS[radius, place] - usual) / (most - usual).clamp_min(LITTLE)).clamp(0, 1)
    return Suspicion(classes[first], gap, left.item())


def moves_to(
    model: nn.Module, target: int, draw: Draw, *, moves: int, radius: float, steps: int
) -> Tensor:
    """Displacements [moves, C, H, W] of at most `radius` that draw the model to the target.

    They differ by the images that they were found on.
    """
    search = _Search([(radius, target)] * moves, steps)
    for x_NCHW, _ in draw(2 * PER * moves, steps):
        which_N, moved_NCHW = search.moved(x_NCHW)
        with autocast(x_NCHW.device):
            logits_NK = model(moved_NCHW)
        search.step(cross_entropy(logits_NK.float(), search.target_M[which_N]))
    return search.moves_MCHW.detach()


Models = tuple[nn.Module, nn.Module, nn.Module]  # victim, sieved model, copy
Pairs = Sequence[tuple[float, int]]  # radius and target of each displacement


def _draws(models: Models, draw: Draw, pairs: Pairs, steps: int, group: int) -> Tensor:
    """How strongly victim and sieved model are drawn along each pair's displacement [2, M]."""
    groups = [pairs[start : start + group] for start in range(0, len(pairs), group)]
    return torch.cat([_draws_of(models, draw, group, steps) for group in groups], 1)


def _draws_of(models: Models, draw: Draw, pairs: Pairs, steps: int) -> Tensor:
    victim, _, copy = models
    search = _Search(pairs, steps)
    size = PER * len(pairs)
    for x_NCHW, y_N in draw(size, steps):
        which_N, moved_NCHW = search.moved(x_NCHW)
        with autocast(x_NCHW.device):
            victim_NK, copy_NK = victim(moved_NCHW), copy(moved_NCHW)
        lost = cross_entropy(victim_NK.float(), search.target_M[which_N])
        search.step(lost + cross_entropy(copy_NK.float(), y_N))
    sums = [_drawn(models, search, batch) for batch in draw(size, steps)]
    total_2M, count_M = (torch.stack(parts).sum(0) for parts in zip(*sums, strict=True))
    return total_2M / count_M.clamp_min(1)


@torch.no_grad()
def _drawn(models: Models, search: _Search, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of the probabilities [victim and sieved, M], and how many images were asked [M]."""
    x_NCHW, y_N = batch
    which_N, moved_NCHW = search.moved(x_NCHW)
    target_N = search.target_M[which_N]
    with autocast(x_NCHW.device):
        *said, copy_NK = (model(moved_NCHW) for model in models)
    p_2NK = torch.stack(said).float().softmax(2)
    p_2N = p_2NK.gather(2, target_N.expand(2, -1)[:, :, None]).squeeze(2)
    asked_N = y_N != target_N
    count = len(search.targets)
    total_2M = p_2N.new_zeros(2, count).index_add_(
        1, which_N, p_2N * (asked_N & (copy_NK.argmax(1) == y_N))
    )
    return total_2M, torch.bincount(which_N[asked_N], minlength=count)


class _Search:
    """Steepest descent of displacements, one for each pair; images take them in turn.

    Steps have a length that the gradient does not set, so that a dozen of them suffice.
    """

    def __init__(self, pairs: Pairs, steps: int) -> None:
        self.radii, self.targets = zip(*pairs, strict=True)
        self.lengths = torch.linspace(FIRST, LAST, steps).tolist()
        self.shown = 0
        self.done = 0

    def moved(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Which displacement each image is under [N], and the images under them."""
        if self.shown == 0:
            self._start(x_NCHW)
        which_N = (self.shown + torch.arange(len(x_NCHW), device=x_NCHW.device)) % len(self.radii)
        self.shown += len(x_NCHW)
        return which_N, (x_NCHW + self.moves_MCHW[which_N]).clamp(0, 1)

    def _start(self, x_NCHW: Tensor) -> None:
        shape = (len(self.targets), *x_NCHW.shape[1:])
        self.target_M = torch.tensor(self.targets, device=x_NCHW.device)
        self.radius_M111 = torch.tensor(self.radii, device=x_NCHW.device)[:, None, None, None]
        self.moves_MCHW = torch.zeros(shape, device=x_NCHW.device, requires_grad=True)
        self.course_MCHW = torch.zeros(shape, device=x_NCHW.device)

    def step(self, loss: Tensor) -> None:
        (slope_MCHW,) = torch.autograd.grad(loss, [self.moves_MCHW])
        self.course_MCHW.mul_(MOMENTUM).add_(slope_MCHW / _rms(slope_MCHW))
        length_M111 = self.lengths[self.done] * self.radius_M111
        self.done += 1
        with torch.no_grad():
            self.moves_MCHW.sub_(length_M111 * self.course_MCHW / _rms(self.course_MCHW))
            self.moves_MCHW.mul_((self.radius_M111 / _rms(self.moves_MCHW)).clamp_max(1))


def _rms(u_MCHW: Tensor) -> Tensor:
    return u_MCHW.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(NEVER)
