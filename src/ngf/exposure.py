"""Exposure: whether the victim is led astray where its sieved copy is not.

An adversarial displacement fools both alike. One that leads the victim away from the truth while
the copy, which kept only what clean images use (`sieve.py`), still names it goes through what the
copy lost. Displacements d, each the same for all images, are found by gradient descent:

    min_d  E  -log(1 - p_victim(y | x + d))  -  log p_copy(y | x + d)        rms(d) <= radius

and judged on other images, by how far they lead astray where the copy is right: the mean of
1 - p_victim(y | x + d) over those, or how sure the victim is of a false class (`margins.py`). Two
networks differ somewhere, so something is always found. The same search with the roles swapped says
how much: a benign victim strays no further than its copy does. So the *gap* between the two is what
is asked for, and no class is searched by itself, as in Neural Cleanse (Wang et al. 2019): a
backdoor may send each class to another one.

A patch of a few pixels takes little of a displacement's length, and on a sharp network the whole
image's gradients drown it. Where displacements of the whole image show nothing, the same search is
made in *windows*: each displacement has a part of the image for itself, and all of the length.
A backdoor for images of some classes alone shows in no displacement that all images share: for it
there is one *for each class*, found and judged on images of that class.
Other displacements are no sum, as warps (`warps.py`) and styles (`styles.py`): a search says what
it does to an image.

Where most of what is searched leads nowhere, the best are kept from time to time and take the
images of those that are left out (successive halving, Jamieson and Talwalkar 2016, arXiv
1502.07943): of as many steps and images each then has a better gradient.
"""

from __future__ import annotations

import abc
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngf.device import autocast
from ngf.margins import Judge, Probability, Says, logits
from ngf.training import Batch

Draw = Callable[[int, int], Iterable[Batch]]  # (images of a batch, batches)
Loss = Callable[[Tensor, Tensor], Tensor]  # of each displaced image, by its label
Displace = Callable[[Tensor, Tensor], Tensor]  # images [N, C, H, W], each by its own displacement
Made = Callable[[Tensor], Tensor]  # the displacements that numbers make; linear

TRIED = 8  # displacements of the whole image that are searched together
RADIUS = 0.02  # their largest root mean square, in pixel values of [0, 1]
IN_A_WINDOW = 3  # images of a step in each window
IN_A_CLASS = 4  # and of each class
PARTS = 6  # of a side; a window takes two, and the next one begins a part further
FIRST, LAST = 1.0, 0.05  # length of a step, in radii; in between linear
NEAR = 0.5  # of the first one where a search begins at what was found
WEIGHED = 4  # steps before some are left out, whose losses say which
MOMENTUM = 0.8
MAJORITY = 0.5  # of what is led astray, for a class to be called the target
FURTHER = 2.0  # times what was found in a window, where it is asked what is left: a patch is longer
NEVER = 1e-12


def added(x_NCHW: Tensor, moves_NCHW: Tensor) -> Tensor:
    """The images plus their displacements, in [0, 1]."""
    return (x_NCHW + moves_NCHW).clamp(0, 1)


@dataclass(frozen=True)
class Search(abc.ABC):
    """Which displacements are searched together, and what they are made of.

    radius: their largest root mean square. each: images of a step under each, if there is memory
    for them. displace: what one does to an image. as_found, in_part, windowed: as in `Suspicion`.
    first: length of the first step, in radii. kept: how many are searched on, after equal parts of
    the steps; none says that all are, to the end.
    """

    radius: float
    each: int
    displace: Displace = added
    as_found: bool = False
    in_part: bool = False
    windowed: bool = False
    first: float = FIRST
    kept: tuple[int, ...] = ()

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abc.abstractmethod
    def start(self, x_NCHW: Tensor) -> tuple[Tensor, Made]:
        """For images like these: the numbers to begin at, and what numbers make.

        They are on a grid of their own [M, C, R, S], and of displacements of no length unless the
        search says otherwise. What makes displacements treats all alike, or `kept` is empty.
        """

    def images(self, most: int) -> int:
        """Of a step: so many at most, but one for each."""
        return max(len(self), min(most, self.each * len(self)))


@dataclass(frozen=True, kw_only=True)
class Within(Search):
    """Displacements that are added, each where its mask [M, 1, H, W] is 1 and not 0.

    A mask with sides of 1 is the whole image's. begin_MCHW: where the search begins.
    """

    mask_M1HW: Tensor
    begin_MCHW: Tensor | None = None

    def __len__(self) -> int:
        return len(self.mask_M1HW)

    def start(self, x_NCHW: Tensor) -> tuple[Tensor, Made]:
        begin_MCHW = self.begin_MCHW
        if begin_MCHW is None:
            begin_MCHW = x_NCHW.new_zeros(len(self), *x_NCHW.shape[1:])
        return begin_MCHW.clone(), self.mask_M1HW.to(x_NCHW.device).mul


@dataclass(frozen=True)
class AsFound(Search):
    """Displacements of other kinds: `moves` of them, which stand for the backdoor as they are."""

    as_found: bool = True
    in_part: bool = True
    moves: int = TRIED

    def __len__(self) -> int:
        return self.moves


def everywhere(each: int, *, moves: int = TRIED, radius: float = RADIUS) -> Search:
    """Displacements of the whole image."""
    return Within(radius, each, mask_M1HW=torch.ones(moves, 1, 1, 1))


def near(found_MCHW: Tensor, each: int, *, moves: int, radius: float) -> Search:
    """Displacements of the whole image that begin at those that were found, in turn."""
    mask_M1HW, begin_MCHW = torch.ones(moves, 1, 1, 1), _in_turn(found_MCHW, moves)
    return Within(radius, each, first=NEAR, mask_M1HW=mask_M1HW, begin_MCHW=begin_MCHW)


def windows(height: int, width: int, radius: float) -> Search:
    """One displacement for each window, a third of either side; windows overlap by half."""
    starts = range(PARTS - 1)
    mask_M1HW = torch.zeros(len(starts) ** 2, 1, height, width)
    for mask_HW, (i, j) in zip(mask_M1HW[:, 0], itertools.product(starts, repeat=2), strict=True):
        down, across = (
            slice(side * at // PARTS, side * (at + 2) // PARTS)
            for side, at in ((height, i), (width, j))
        )
        mask_HW[down, across] = 1
    return Within(radius, IN_A_WINDOW, as_found=True, windowed=True, mask_M1HW=mask_M1HW)


def for_each_class(count: int, radius: float) -> Search:
    """One displacement of the whole image for each of so many classes.

    Batches must hold images of class n mod `count` at n (`ngf.views.Views.by_class`), which is the
    displacement that they take.
    """
    search = everywhere(IN_A_CLASS, moves=count, radius=radius)
    return replace(search, as_found=True, in_part=True)


@dataclass(frozen=True)
class Suspicion:
    """What was found of a victim.

    gap: how much further it strays than its copy, in [-1, 1], or at most so much, see `suspect`.
    target: the class that takes most of what is led astray, or -1 where none takes half. left: how
    much the sieved model strays there, as a share of the victim, in [0, 1]. moves_MCHW: the
    displacements that lead furthest. displace: what they do to an image. as_found: whether they
    stand for the backdoor as they are, because gradients over the whole image would not find their
    like. in_part: whether they may open a part of it at best, being of another kind. windowed:
    whether each lies in a window; what is left is told FURTHER along then. beside: what a look of
    another kind showed that shows enough too, and stands for the backdoor as well.
    """

    gap: float
    target: int
    left: float
    moves_MCHW: Tensor
    displace: Displace = added
    as_found: bool = False
    in_part: bool = False
    windowed: bool = False
    beside: Suspicion | None = None

    @property
    def followed(self) -> bool:
        """Whether it leads to one class, and gradients over the whole image would find its like."""
        return self.target >= 0 and not self.as_found


def suspect(
    victim: nn.Module,
    sieved: nn.Module,
    copy: nn.Module,
    draw: Draw,
    search: Search,
    *,
    steps: int,
    most: int,
    judge: Judge = Probability,
    enough: float = 0.0,
) -> Suspicion:
    """How far the victim can be led astray. All models must be in evaluation mode; they stay so.

    Args:
        steps: of the descent, and batches that judge it. most: images of a batch, if that gives
            each displacement one. judge: what gap and target are told by. What is left always is by
            probabilities.
        enough: a gap that counts. Where the victim strays by less, its copy is not led astray in
            turn, which could only make the gap smaller: the gap that is returned is then the most
            that it can be. Where it is too small, nobody asks what is left: all of it.
    """
    size, displace = search.images(most), search.displace
    ahead, behind, judged = (draw(size, steps) for _ in range(3))
    found_MCHW = led_astray(victim, copy, ahead, search, steps=steps)
    batches = list(judged)
    along = Along(copy, displace, found_MCHW, batches)
    victim_MK, before_MK = along.strays(judge(victim), Probability(victim))
    stray_M = victim_MK.sum(1)
    gap = stray_M.max()
    if gap >= enough:
        control_MCHW = led_astray(copy, victim, behind, search, steps=steps)
        gap = gap - Along(victim, displace, control_MCHW, batches).strays(judge(copy)).sum(2).max()
    kept_M = stray_M >= stray_M.max() - gap.clamp_min(0) / 2
    taken_K = victim_MK[kept_M].mean(0)
    first, all_taken = int(taken_K.argmax()), taken_K.sum().clamp_min(NEVER)
    found = Suspicion(
        gap=gap.item(),
        target=first if taken_K[first] >= MAJORITY * all_taken else -1,
        left=1.0,
        moves_MCHW=found_MCHW[kept_M],
        displace=displace,
        as_found=search.as_found,
        in_part=search.in_part,
        windowed=search.windowed,
    )
    if gap < enough:
        return found
    if found.windowed:
        return replace(found, left=left_in(sieved, found, victim, copy, batches))
    (after_MK,) = along.strays(Probability(sieved))
    return replace(found, left=_share(after_MK[kept_M], before_MK[kept_M]))


def left_in(
    sieved: nn.Module,
    found: Suspicion,
    victim: nn.Module,
    copy: nn.Module,
    batches: Sequence[Batch],
) -> float:
    """`Suspicion.left` of another sieved model, on these images."""
    reach = FURTHER if found.windowed else 1.0
    along = Along(copy, found.displace, reach * found.moves_MCHW, batches)
    before_MK, after_MK = along.strays(Probability(victim), Probability(sieved))
    return _share(after_MK, before_MK)


def led_astray(
    model: nn.Module, copy: nn.Module, batches: Iterable[Batch], search: Search, *, steps: int
) -> Tensor:
    """Displacements [M, C, H, W] that lead the model away from the truth, and not the copy."""

    def loss(moved_NCHW: Tensor, y_N: Tensor) -> Tensor:
        with autocast(moved_NCHW.device):
            model_NK, copy_NK = model(moved_NCHW), copy(moved_NCHW)
        staying_N = _staying(model_NK.float(), y_N)
        return staying_N + cross_entropy(copy_NK.float(), y_N, reduction="none")

    return _descended(loss, batches, search, steps)


def led_to(
    model: nn.Module, target: int, draw: Draw, search: Search, *, steps: int, most: int
) -> Tensor:
    """Displacements [M, C, H, W] that draw the model to the target.

    They differ by the images that they were found on. `most` as in `suspect`.
    """
    size = search.images(most)

    def loss(moved_NCHW: Tensor, y_N: Tensor) -> Tensor:
        with autocast(moved_NCHW.device):
            logits_NK = model(moved_NCHW)
        return cross_entropy(logits_NK.float(), torch.full_like(y_N, target), reduction="none")

    return _descended(loss, draw(size, steps), search, steps)


def _descended(loss: Loss, batches: Iterable[Batch], search: Search, steps: int) -> Tensor:
    """Displacements [M, C, H, W] with a small loss; images take them in turn.

    Steepest descent whose steps have a length that the gradient does not set, so that some dozens
    suffice.
    """
    radius = search.radius
    lengths = torch.linspace(search.first * radius, LAST * radius, steps).tolist()
    batches = iter(batches)
    first = next(batches)
    numbers_MCRS, made = search.start(first[0])
    course_MCRS = torch.zeros_like(numbers_MCRS)
    cuts = {(k + 1) * steps // (len(search.kept) + 1): kept for k, kept in enumerate(search.kept)}
    lately: deque[Tensor] = deque(maxlen=WEIGHED)
    turns = zip(lengths, itertools.chain([first], batches), strict=True)
    for step, (length, (x_NCHW, y_N)) in enumerate(turns):
        if step in cuts and lately:
            total_M = torch.stack([*lately]).sum(0)
            best = total_M.topk(cuts[step], largest=False).indices
            numbers_MCRS, course_MCRS = numbers_MCRS[best], course_MCRS[best]
            lately.clear()
        numbers_MCRS.requires_grad_()
        moved_NCHW = search.displace(x_NCHW, _in_turn(made(numbers_MCRS), len(x_NCHW)))
        loss_N = loss(moved_NCHW, y_N)
        (slope_MCRS,) = torch.autograd.grad(loss_N.mean(), [numbers_MCRS])
        if search.kept:
            lately.append(_of_each(loss_N.detach(), len(numbers_MCRS)))
        course_MCRS = MOMENTUM * course_MCRS + slope_MCRS / _rms(slope_MCRS)
        numbers_MCRS = numbers_MCRS.detach() - length * course_MCRS / _rms(made(course_MCRS))
        numbers_MCRS *= (radius / _rms(made(numbers_MCRS))).clamp_max(1)
    return made(numbers_MCRS)


def _of_each(loss_N: Tensor, count: int) -> Tensor:
    """The mean loss [count] of each displacement, that images took in turn."""
    return torch.stack([loss_N[m::count].mean() for m in range(count)])


def _staying(logits_NK: Tensor, y_N: Tensor) -> Tensor:
    """-log(1 - p(y)) of each."""
    others_NK = logits_NK.scatter(1, y_N[:, None], float("-inf"))
    return logits_NK.logsumexp(1) - others_NK.logsumexp(1)


class Along:
    """Batches of images, each image along one of the displacements, that a copy judges.

    Only those count that the copy answers rightly there.
    """

    def __init__(
        self,
        copy: nn.Module,
        displace: Displace,
        moves_MCHW: Tensor,
        batches: Sequence[Batch],
    ) -> None:
        self.displace, self.moves_MCHW, self.batches = displace, moves_MCHW, batches
        self.right = [
            (logits(copy, moved_NCHW).argmax(1) == y_N).float() for moved_NCHW, y_N in self._moved()
        ]

    @torch.no_grad()
    def strays(self, *asked: Says) -> Tensor:
        """What each says of each false class along each displacement, mean [asked, M, K].

        A model that is asked in two ways sees the images once.
        """
        totals, counts = [], []
        for right_N, (moved_NCHW, y_N) in zip(self.right, self._moved(), strict=True):
            models = dict.fromkeys(says.model for says in asked)
            heard = {model: logits(model, moved_NCHW) for model in models}
            said_SNK = torch.stack([says.of(heard[says.model]) for says in asked])
            said_SNK *= right_N[:, None]
            said_SNK.scatter_(2, y_N[None, :, None].expand(len(said_SNK), -1, 1), 0)
            which_N = torch.arange(len(y_N), device=y_N.device) % len(self.moves_MCHW)
            none_SMK = said_SNK.new_zeros(len(said_SNK), len(self.moves_MCHW), said_SNK.shape[2])
            totals.append(none_SMK.index_add(1, which_N, said_SNK))
            counts.append(right_N.new_zeros(len(self.moves_MCHW)).index_add(0, which_N, right_N))
        return torch.stack(totals).sum(0) / torch.stack(counts).sum(0)[:, None].clamp_min(1)

    def _moved(self) -> Iterator[Batch]:
        for x_NCHW, y_N in self.batches:
            yield self.displace(x_NCHW, _in_turn(self.moves_MCHW, len(x_NCHW))), y_N


def _share(after_MK: Tensor, before_MK: Tensor) -> float:
    """How much of what strays still does, in [0, 1]."""
    share = after_MK.sum(1).mean() / before_MK.sum(1).mean().clamp_min(NEVER)
    return share.clamp_max(1).item()


def _in_turn(moves_MCHW: Tensor, count: int) -> Tensor:
    """The displacement of each image [N, ...]: of image n, n mod M. Repeated, not indexed: the
    gradient of an index adds up in no set order where several threads do it."""
    turns = -(-count // len(moves_MCHW))
    return moves_MCHW.repeat(turns, 1, 1, 1)[:count]


def _rms(u_MCHW: Tensor) -> Tensor:
    return u_MCHW.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(NEVER)
