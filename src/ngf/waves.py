"""Waves: whether ripples draw the victim to a class further than they draw a copy that was sieved.

Stripes that training made a backdoor of (SIG, Barni et al. 2019, arXiv 1902.11237) are long, weak
in each pixel, and far from what gradients find: a search by displacements (`exposure.py`) drifts
off to what draws any network. But ripples are few enough to be tried, all of them, without a
gradient. A class t *leads* along a wave w of a set root mean square by

    mean over clean images of other classes of  s_victim(t | x + w) - s_copy(t | x + w)

where s, in [0, 1], is how sure a model is of a class, measured by how sure it is of clean images
(`margins.py`). Some ripples make any network waver, and which one more is chance; a backdoor is as
sure of its class as of an image of it. As for displacements, some wave always leads, and the copy
is the measure of how far: the *gap* is the furthest lead of the victim over the copy to a class,
less the furthest of the copy over the victim to that class, less a part of the furthest to any.
A benign network, filtered, wavers most towards the classes that it wavered to before. To a
backdoor's class the copy does not lead.

Waves differ by frequency and phase. Most images are spent on the frequencies that lead at a first
look. Over the phase the lead is close to a constant and one harmonic, whose top is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ngf.exposure import Suspicion
from ngf.margins import Judge, Probability, Says

CYCLES = 8  # along a wave: finer ones are in no natural image and send any network somewhere
PHASES = 4
LOOKS = (4, 12)  # images of each wave, at first and when looked at again
KEPT = 0.15  # of the frequencies are looked at again
OWN = 2  # of each class, too, and waves of a class that are judged in the end
TOP = 4  # classes that are
ANY = 2  # classes that a copy is drawn to, likewise
JUDGED = 128  # images of each of these waves
OTHERS = 0.6  # of the copy's furthest lead to any class, taken from the victim's to one
NEVER = 1e-12

Leads = Callable[["Waves", int], Tensor]  # of waves, so many images of each: [M, K]


@dataclass(frozen=True)
class Shown:
    """The clean images that all waves are laid over. size: images in a batch."""

    x_NCHW: Tensor
    y_N: Tensor
    generator: torch.Generator
    size: int

    def under(self, waves: Waves, each: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of random images: under which wave [B], the images under it, their labels."""
        height, width = self.x_NCHW.shape[2:]
        where = self.y_N.device
        total = each * len(waves)
        row_T = torch.randint(len(self.y_N), (total,), generator=self.generator, device=where)
        which_T = torch.arange(total, device=where) % len(waves)
        for row_B, which_B in zip(row_T.split(self.size), which_T.split(self.size), strict=True):
            x_BCHW = self.x_NCHW[row_B] + waves.of(which_B, height, width)
            yield which_B, x_BCHW.clamp_(0, 1), self.y_N[row_B]

    def leads(self, one: Says, other: Says, waves: Waves, each: int) -> Tensor:
        """By how much the one lies above the other, for each wave and class [M, K]."""
        totals, counts = [], []
        for which_B, x_BCHW, y_B in self.under(waves, each):
            lead_BK = one(x_BCHW) - other(x_BCHW)
            asked_BK = torch.ones_like(lead_BK).scatter_(1, y_B[:, None], 0)
            none_MK = lead_BK.new_zeros(len(waves), lead_BK.shape[1])
            totals.append(none_MK.index_add(0, which_B, lead_BK * asked_BK))
            counts.append(none_MK.index_add(0, which_B, asked_BK))
        return torch.stack(totals).sum(0) / torch.stack(counts).sum(0).clamp_min(1)


@dataclass(frozen=True)
class Waves:
    """frequency_M2: cycles down and across the image. phase_M: in radians. rms: of each wave."""

    frequency_M2: Tensor
    phase_M: Tensor
    rms: float

    def __len__(self) -> int:
        return len(self.phase_M)

    def of(self, which_N: Tensor, height: int, width: int) -> Tensor:
        """The waves of these numbers [N, 1, height, width], made when asked for: all are many."""
        device = self.phase_M.device
        down_H = torch.arange(height, device=device) / height
        across_W = torch.arange(width, device=device) / width
        v_N11, u_N11 = 2 * math.pi * self.frequency_M2[which_N].T[:, :, None, None]
        angle_NHW = v_N11 * down_H[:, None] + u_N11 * across_W
        angle_NHW += self.phase_M[which_N, None, None]
        return (math.sqrt(2) * self.rms * angle_NHW.sin())[:, None]


def strongest(
    victim: nn.Module,
    sieved: nn.Module,
    copy: nn.Module,
    shown: Shown,
    *,
    rms: float,
    moves: int,
    judge: Judge,
) -> Suspicion:
    """What the wave shows along which a class of the victim leads most.

    Args:
        sieved: of which `left` says how much of the class's probability it still shows there.
        rms: root mean square of a wave, in pixel values of [0, 1].
        moves: waves that are returned, all of that class.
        judge: how sure a model is of a class. What is left is by probabilities.
    """
    height, width = shown.x_NCHW.shape[2:]
    frequency_F2 = _frequencies(height, width).to(shown.y_N.device)
    victim_says, copy_says = judge(victim), judge(copy)
    ahead, behind = (
        partial(shown.leads, *asked)
        for asked in ((victim_says, copy_says), (copy_says, victim_says))
    )
    lead_FPK = _by_frequency(ahead, frequency_F2, rms, LOOKS[0])
    own = Again.of(ahead, frequency_F2, lead_FPK, rms)
    other = Again.of(behind, frequency_F2, -lead_FPK, rms)
    gap, target = _furthest(own, other)
    waves = own.waves(target, moves)
    every_M = torch.arange(len(waves), device=shown.y_N.device)
    return Suspicion(
        gap=gap,
        target=target,
        left=_left(shown, victim, sieved, waves, target),
        moves_MCHW=waves.of(every_M, height, width),
        as_found=True,
        in_part=True,
    )


@dataclass(frozen=True)
class Again:
    """The frequencies that are looked at again, with the leads to each class at its best phase."""

    leads: Leads
    rms: float
    frequency_G2: Tensor
    lead_GK: Tensor
    phase_GK: Tensor

    @classmethod
    def of(cls, leads: Leads, frequency_F2: Tensor, lead_FPK: Tensor, rms: float) -> Again:
        """From the leads of a first look: the frequencies that lead most, to any and to each."""
        first_FK = at_best_phase(lead_FPK)[0]
        kept = min(max(OWN, round(KEPT * len(first_FK))), len(first_FK))
        any_T = first_FK.amax(1).topk(kept).indices
        each_T = first_FK.topk(min(OWN, len(first_FK)), dim=0).indices.flatten()
        frequency_G2 = frequency_F2[torch.cat([any_T, each_T]).unique()]
        again = at_best_phase(_by_frequency(leads, frequency_G2, rms, LOOKS[1]))
        return cls(leads, rms, frequency_G2, *again)

    def waves(self, target: int, count: int) -> Waves:
        """Those that lead furthest to a class, the furthest first, or all."""
        count = min(count, len(self.frequency_G2))
        which_W = self.lead_GK[:, target].topk(count).indices
        return Waves(self.frequency_G2[which_W], self.phase_GK[which_W, target], self.rms)

    def judged(self, targets: Tensor) -> Tensor:
        """The furthest leads to these classes [T], on other images."""
        furthest = [
            self.leads(self.waves(target, OWN), JUDGED)[:, target].amax()
            for target in targets.tolist()
        ]
        return torch.stack(furthest)


def _furthest(own: Again, other: Again) -> tuple[float, int]:
    """The gap and its class."""
    own_K, other_K = own.lead_GK.amax(0), other.lead_GK.amax(0)
    first_T = (own_K - other_K).topk(min(TOP, len(own_K))).indices
    any_A = other_K.topk(min(ANY, len(other_K))).indices
    other_T = other.judged(first_T)
    most = torch.cat([other_T, other.judged(any_A)]).amax()
    gap_T = own.judged(first_T) - other_T - OTHERS * most
    best = int(gap_T.argmax())
    return gap_T[best].item(), int(first_T[best])


def _left(shown: Shown, victim: nn.Module, sieved: nn.Module, waves: Waves, target: int) -> float:
    """Mean probability of the target in the sieved model, as a share of the victim's."""
    asked = Probability(sieved), Probability(victim)
    totals = torch.full((2,), NEVER, device=shown.y_N.device)
    for _, x_BCHW, y_B in shown.under(waves, JUDGED // len(waves)):
        said = torch.stack([says(x_BCHW) for says in asked])
        totals += (said[:, :, target] * (y_B != target)).sum(1)
    return min(1.0, (totals[0] / totals[1]).item())


def _frequencies(height: int, width: int) -> Tensor:
    """Whole cycles down and across [F, 2] that the pixels carry, CYCLES along the wave at most.

    A wave and its mirror through the origin differ by the phase alone, so half of them suffice.
    """
    down, across = (min(CYCLES, (side - 1) // 2) for side in (height, width))
    return torch.tensor(
        [
            (v, u)
            for v in range(-down, down + 1)
            for u in range(across + 1)
            if (u > 0 or v > 0) and math.hypot(u, v) <= CYCLES
        ]
    )


def _by_frequency(leads: Leads, frequency_F2: Tensor, rms: float, each: int) -> Tensor:
    """The leads to each class [F, PHASES, K], `each` images of every wave."""
    phase_P = torch.arange(PHASES, device=frequency_F2.device) * (2 * math.pi / PHASES)
    waves = Waves(frequency_F2.repeat_interleave(PHASES, 0), phase_P.repeat(len(frequency_F2)), rms)
    return leads(waves, each).unflatten(0, (-1, PHASES))


def at_best_phase(lead_FPK: Tensor) -> tuple[Tensor, Tensor]:
    """Top of the constant and first harmonic through P evenly spaced phases, and where, [F, K]."""
    count = lead_FPK.shape[1]
    which_P = torch.arange(count, dtype=lead_FPK.dtype, device=lead_FPK.device)
    phase_P1 = which_P[:, None] * (2 * math.pi / count)
    cosine_FK = 2 * (lead_FPK * phase_P1.cos()).mean(1)
    sine_FK = 2 * (lead_FPK * phase_P1.sin()).mean(1)
    return lead_FPK.mean(1) + torch.hypot(cosine_FK, sine_FK), torch.atan2(sine_FK, cosine_FK)
