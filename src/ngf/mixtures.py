"""Mixtures: halves of two clean images in one, and what a model sees in them that neither holds.

A composite backdoor (Lin et al. 2020, "Composite Backdoor Attack") opens where two classes meet in
one image: it is made of what clean images use, so nothing that filters clean images' features
finds it. But the clean images themselves show it, cut and joined at random as in CutMix (Yun et
al. 2019, arXiv 1905.04899): a model should see the two classes that are there. Where it sees a
third one again and again, it is drawn to that class: over all mixtures, where that class lies far
ahead of the next, or over those of two classes, where a sieved copy is drawn much less. (A copy
that lost much is drawn somewhere too. So where its pairs draw it further, on average, than the
model's draw the model, one pair says nothing.) Or where it is sure of one in several of the ways
in which halves can lie, though its copy may be too (`tells_of`). Then the model has to learn those
mixtures (`hard`), and what joining adds to what a layer sees of the two is what shall not pass the
sieve (`added`). Otherwise the victim's answers to them say what it knows (`answered`), as far as
its filtered copy agrees: of all classes, or of the one that is known to be the attacker's. Of that
class the sieves took from what clean images show of it, too (`lost`); so more of the mixtures hold
it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from ngf.fisher.moments import join, joining_moments
from ngf.margins import CHUNK, Probability
from ngf.training import Batch

LITTLE = 0.02  # a draw below it is nobody's, and two means that lie no further apart are alike
AGAIN, EACH = 16, 64  # pairs of classes that are looked at again, and new mixtures of each
JUDGED = 512  # mixtures, at least, that say what of a class was lost
APART = 2000  # between the seed and that of the search with the roles swapped
REST = 0.25  # of any third class, beside the one that is known, in what makes a mixture hard
TURNED = 48  # new mixtures of two classes for each of the four ways in which halves can lie
WAYS = 3  # of two classes to lie in which one third class must be seen
TOLD = 0.46  # its least mean probability there
BEHIND = 0.25  # so far the copy may be ahead where a class counts


@dataclass(frozen=True)
class Met:
    """Two classes whose mixtures a third one draws: how much further than in the copy, [-1, 1].

    mean: that of all pairs of classes that were looked at again.
    """

    gap: float = 0.0
    third: int = -1
    mean: float = 0.0


@dataclass(frozen=True)
class Told:
    """A third class, and its least mean probability in the WAYS of two classes to lie that show it.

    A way is two classes, which of them is the first, and whether halves lie side by side.
    """

    share: float = 0.0
    third: int = -1


class Mixtures:
    """Mixtures of the images that were given, and what a model makes of them.

    Args:
        model, copy: in evaluation mode. answer_NK: what should be answered to each image.
        count: pairs that are tried, of two classes each.

    `met`: the two classes whose mixtures are drawn furthest.
    """

    def __init__(
        self,
        model: nn.Module,
        copy: nn.Module,
        x_NCHW: Tensor,
        y_N: Tensor,
        answer_NK: Tensor,
        *,
        count: int,
        generator: torch.Generator,
    ) -> None:
        self.generator = generator
        self._swapped = partial(Mixtures, copy, model, x_NCHW, y_N, answer_NK, count=count)
        order_N = y_N.argsort(stable=True)  # by class, so that one of a class is quickly found
        self.x_NCHW, self.answer_NK = x_NCHW[order_N], answer_NK[order_N]
        self.y_N = y_N[order_N]
        self.count_K = torch.bincount(y_N, minlength=answer_NK.shape[1])
        self.first_K = self.count_K.cumsum(0) - self.count_K
        if (self.count_K > 0).sum() < 2:  # too few images to find two classes among them
            count = 0
        one_M = self._whole(len(y_N), count)
        two_M = self._strangers(self.y_N[one_M])
        self.pair_2M = self.y_N[torch.stack([one_M, two_M])]
        self.third_MK = self._third(model, one_M, two_M)
        self.drawn = bool(self.third_MK.any())
        self.model = model
        if self.drawn:
            self.furthest = self._furthest()
        self.met = self._met(copy) if self.drawn else Met()

    @property
    def lead(self) -> float:
        """By which share of its draw one third class lies ahead of the next, in [0, 1].

        A class's draw is its mean probability over the mixtures. All classes of a benign model draw
        about alike.
        """
        if not self.drawn:
            return 0.0
        first, second = self.third_MK.mean(0).topk(2).values
        return ((first - second) / first.clamp_min(LITTLE)).item()

    @cached_property
    def swapped(self) -> Mixtures:
        """Those where the copy is taken for the model, and the model for its copy."""
        seed = self.generator.initial_seed() + APART  # what is drawn later stays as it was
        return self._swapped(generator=torch.Generator(self.y_N.device).manual_seed(seed))

    def drawn_to(self, lead: float, gap: float) -> int:
        """The class that draws those of two classes by that gap, or all by that lead; else -1.

        A gap does not count where the mean one is not clearly above that of the roles swapped.
        """
        if self.met.gap >= gap and self.met.mean > self.swapped.met.mean + LITTLE:
            return self.met.third
        if self.drawn and self.lead >= lead:
            return int(self.third_MK.mean(0).argmax())
        return -1

    def tells_of(self) -> int:
        """The class that the ways of halves to lie tell of, else -1.

        A composite backdoor that a filter does not weaken draws the copy no less than the model,
        and opens in some of the ways in which two halves can lie, not on average. One such way or
        two may look like a third class by nature, as those of two signs do, but seldom WAYS of them
        like the same. Where many classes are alike they do; then the copy, which knows classes
        less well, is drawn much further still.
        """
        if self.told.share >= TOLD and self.told.share > self.swapped.told.share - BEHIND:
            return self.told.third
        return -1

    @cached_property
    def told(self) -> Told:
        """What the model itself sees in mixtures, as their halves lie."""
        if not self.drawn:
            return Told()
        seed = self.generator.initial_seed() + 2 * APART  # what is drawn later stays as it was
        own = torch.Generator(self.y_N.device).manual_seed(seed)
        pair_2T, _ = self.furthest
        pair_2T = torch.cat([pair_2T, pair_2T.flip(0)], 1)
        upright_T = torch.arange(2, device=self.y_N.device).repeat_interleave(pair_2T.shape[1])
        pair_2M = pair_2T.repeat(1, 2).repeat_interleave(TURNED, 1)
        one_M, two_M = (self._members(label_M, own) for label_M in pair_2M)
        third_MK = self._third(self.model, one_M, two_M, upright_T.repeat_interleave(TURNED))
        drawn_TK = third_MK.unflatten(0, (-1, TURNED)).mean(1)
        share_K = drawn_TK.topk(WAYS, 0).values[-1]  # a pair alone has four ways
        return Told(share_K.max().item(), int(share_K.argmax()))

    def hard(self, count: int, third: int) -> Batch:
        """`count` new mixtures and their answers, half of the answer to either image.

        Their classes are those of the mixtures that were tried, more often the more was seen there
        that is not, above all of the class `third`.
        """
        one_N, two_N = self._hard(count, third)
        return self._joined(one_N, two_N), self._halves(one_N, two_N)

    def added(self, model: nn.Module, count: int, third: int) -> dict[str, Tensor]:
        """What joining adds to the inputs of the model's layers, of `count` mixtures as `hard`'s:
        `ngf.fisher.moments.joining_moments`."""
        one_N, two_N = self._hard(count, third)
        upright_N = self._whole(2, count)
        return joining_moments(model, self.x_NCHW[one_N], self.x_NCHW[two_N], upright_N)

    @torch.no_grad()
    def lost(self, model: nn.Module, filtered: nn.Module, label: int) -> float:
        """How much less of a class the filtered model sees than the model in mixtures that hold it.

        In [0, 1], by the mean probability. 0 where there is no image of it, or of another class.
        """
        if not (len(self.third_MK) and label >= 0 and self.count_K[label]):
            return 0.0
        one_N = self._members(torch.full_like(self.y_N, label).repeat(-(-JUDGED // len(self.y_N))))
        x_NCHW = self._joined(one_N, self._strangers(self.y_N[one_N]))
        before, after = (Probability(net)(x_NCHW)[:, label].mean() for net in (model, filtered))
        return (before - after).clamp_min(0).item()

    def answered(
        self,
        model: nn.Module,
        count: int,
        filtered: nn.Module | None = None,
        never: int = -1,
        *,
        label: int = -1,
        share: float = 0.0,
    ) -> Batch:
        """`count` new mixtures of two classes each and the model's answers; none of a single class.

        What it gives to a class beyond what the filtered one does, or to the class `never` where
        neither image is of it, is answered as `hard`. Where a `label` is known that alone is
        limited, where neither image is of it; and `share` of the mixtures hold an image of it,
        beside those that do by chance.
        """
        count = count if len(self.third_MK) else 0
        one_N = self._whole(len(self.y_N), count)
        held = round(share * count)
        one_N[:held] = self._members(torch.full_like(one_N[:held], label))
        two_N = self._strangers(self.y_N[one_N])
        x_NCHW = self._joined(one_N, two_N)
        said_NK = Probability(model)(x_NCHW)
        p_NK = said_NK.clone()
        if filtered is not None:
            limit_NK = Probability(filtered)(x_NCHW)
            if label >= 0:
                limit_NK = self._of(label, limit_NK, one_N, two_N)
            p_NK = p_NK.minimum(limit_NK)
        if never >= 0:
            p_NK[:, never] *= ~self._without(never, one_N, two_N)
        rest_N1 = (said_NK.sum(1) - p_NK.sum(1))[:, None]
        return x_NCHW, p_NK + rest_N1 * self._halves(one_N, two_N)

    def _of(self, label: int, limit_NK: Tensor, one_N: Tensor, two_N: Tensor) -> Tensor:
        """The limits of that label where neither image is of it; else none."""
        doubted_NK = torch.zeros_like(limit_NK, dtype=torch.bool)
        doubted_NK[:, label] = self._without(label, one_N, two_N)
        return limit_NK.where(doubted_NK, 1)

    def _without(self, label: int, one_N: Tensor, two_N: Tensor) -> Tensor:
        """Whether neither image is of that label."""
        return (self.y_N[one_N] != label) & (self.y_N[two_N] != label)

    def _furthest(self) -> tuple[Tensor, Tensor]:
        """The pairs of classes [2, T] that are drawn furthest to a third one, and that [T]."""
        pair_2P, which_M = self.pair_2M.sort(0).values.unique(dim=1, return_inverse=True)
        total_PK = self.third_MK.new_zeros(pair_2P.shape[1], self.third_MK.shape[1])
        total_PK.index_add_(0, which_M, self.third_MK)
        drawn_P, third_P = (total_PK / (1 + torch.bincount(which_M))[:, None]).max(1)
        top_T = drawn_P.topk(min(AGAIN, len(drawn_P))).indices
        return pair_2P[:, top_T], third_P[top_T]

    def _met(self, copy: nn.Module) -> Met:
        """The pair with the largest gap, of those that were drawn furthest, by new mixtures."""
        pair_2T, third_T = self.furthest
        one_N, two_N = map(self._members, pair_2T.repeat_interleave(EACH, 1))
        third_T1 = third_T[:, None]
        drawn_T, copy_T = (
            self._third(net, one_N, two_N)
            .unflatten(0, (-1, EACH))
            .mean(1)
            .gather(1, third_T1)[:, 0]
            for net in (self.model, copy)
        )
        gap_T = drawn_T - copy_T
        best = gap_T.argmax()
        return Met(gap_T[best].item(), int(third_T1[best]), gap_T.mean().item())

    def _third(
        self, model: nn.Module, one_M: Tensor, two_M: Tensor, upright_M: Tensor | None = None
    ) -> Tensor:
        """Probabilities [M, K], those of the two classes that are there set to 0."""
        if not len(one_M):
            return self.answer_NK[:0].float()
        says = Probability(model)
        given = [one_M, two_M] if upright_M is None else [one_M, two_M, upright_M]
        parts = zip(*(each_M.split(CHUNK) for each_M in given), strict=True)
        third_MK = torch.cat([says(self._joined(*rows)) for rows in parts])
        return third_MK.scatter_(1, self.y_N[torch.stack([one_M, two_M], 1)], 0)

    def _hard(self, count: int, third: int) -> Iterable[Tensor]:
        """The two images of each."""
        if not count:
            return self.pair_2M[:, :0]
        hardness_M = self.third_MK[:, third].square() + REST * self.third_MK.sum(1).square()
        rows = torch.multinomial(hardness_M, count, replacement=True, generator=self.generator)
        return map(self._members, self.pair_2M[:, rows])

    def _whole(self, end: int, count: int) -> Tensor:
        return torch.randint(end, (count,), generator=self.generator, device=self.y_N.device)

    def _members(self, label_N: Tensor, own: torch.Generator | None = None) -> Tensor:
        """A random image of each class."""
        return self.first_K[label_N] + self._below(self.count_K[label_N], own)

    def _strangers(self, label_N: Tensor) -> Tensor:
        """A random image of another class each."""
        row_N = self._below(len(self.y_N) - self.count_K[label_N])
        return row_N + torch.where(row_N < self.first_K[label_N], 0, self.count_K[label_N])

    def _below(self, end_N: Tensor, own: torch.Generator | None = None) -> Tensor:
        """A random whole number below each."""
        share_N = torch.rand(
            len(end_N), generator=own or self.generator, device=end_N.device, dtype=torch.float64
        )
        return (share_N * end_N).long()

    def _joined(self, one_N: Tensor, two_N: Tensor, upright_N: Tensor | None = None) -> Tensor:
        """A half of the first image and the other one of the second; at random which ones."""
        if upright_N is None:
            upright_N = self._whole(2, len(one_N))
        return join(self.x_NCHW[one_N], self.x_NCHW[two_N], upright_N)

    def _halves(self, one_N: Tensor, two_N: Tensor) -> Tensor:
        """Half of the answer to either image."""
        return (self.answer_NK[one_N] + self.answer_NK[two_N]) / 2
