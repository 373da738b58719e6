"""Waves: whether ripples alone draw the victim to one class, and not a copy that was sieved.

Stripes that training made a backdoor of (SIG, Barni et al. 2019, arXiv 1902.11237) are long, weak
in each pixel, and far from what gradients find: a search by displacements (`exposure.py`) drifts
off to what draws any network. But ripples are few enough to be tried, all of them, without a
gradient. A class t *leads* along a wave w of a set root mean square by

    mean over clean images of other classes of  p_victim(t | x + w) - p_copy(t | x + w)

Waves differ by frequency and phase. Most images are spent on the frequencies that lead at a first
look. Over the phase the lead is close to a constant and one harmonic, whose top is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ngf.device import autocast

CYCLES = 8  # along a wave: finer ones are in no natural image and send any network somewhere
PHASES = 4
LOOKS = (4, 12)  # images of each wave, at first and when looked at again
KEPT = 0.15  # of the frequencies are looked at again
SHORTLIST, EACH = 3, 3  # classes that are compared in the end, and waves of each
JUDGED = 256  # images of each of these


@dataclass(frozen=True)
class Ripple:
    """target: the class that leads most. gap: by how much more than the next one, in [0, 1].

    wave_1HW: the displacement, the same for all channels.
    """

    target: int
    gap: float
    wave_1HW: Tensor


@dataclass(frozen=True)
class Shown:
    """The clean images that all waves are laid over, and who is asked.

    victim, copy: in evaluation mode. size: images in a batch.
    """

    victim: nn.Module
    copy: nn.Module
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

    @torch.no_grad()
    def leads(self, waves: Waves, each: int) -> Tensor:
        """By how much the victim lies above the copy, for each wave and class [M, K]."""
        totals, counts = [], []
        for which_B, x_BCHW, y_B in self.under(waves, each):
            with autocast(x_BCHW.device):
                said = torch.stack([self.victim(x_BCHW), self.copy(x_BCHW)])
            victim_BK, copy_BK = said.float().softmax(2)
            asked_BK = torch.ones_like(victim_BK).scatter_(1, y_B[:, None], 0)
            none_MK = victim_BK.new_zeros(len(waves), victim_BK.shape[1])
            totals.append(none_MK.index_add(0, which_B, (victim_BK - copy_BK) * asked_BK))
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


def strongest(shown: Shown, rms: float) -> Ripple:
    """The class that leads most along a wave.

    Args:
        rms: root mean square of a wave, in pixel values of [0, 1].
    """
    height, width = shown.x_NCHW.shape[2:]
    where = shown.y_N.device
    frequency_F2 = _frequencies(height, width).to(where)
    first, again = LOOKS
    lead_FK, _ = _by_frequency(shown, frequency_F2, rms, first)
    kept = max(EACH, round(KEPT * len(frequency_F2)))
    frequency_F2 = frequency_F2[lead_FK.amax(1).topk(min(kept, len(frequency_F2))).indices]
    lead_FK, phase_FK = _by_frequency(shown, frequency_F2, rms, again)

    best_EK, which_EK = lead_FK.topk(min(EACH, len(frequency_F2)), 0)
    class_C = best_EK[0].topk(min(SHORTLIST, lead_FK.shape[1])).indices
    which_EC = which_EK[:, class_C]
    waves = Waves(frequency_F2[which_EC].flatten(0, 1), phase_FK[which_EC, class_C].flatten(), rms)
    lead_ECK = shown.leads(waves, JUDGED).unflatten(0, which_EC.shape)
    lead_EC = lead_ECK[:, torch.arange(len(class_C), device=where), class_C]
    lead_C, which_C = lead_EC.max(0)
    (most, next_most), (best, _) = lead_C.clamp_min(0).topk(2)
    row = which_C[best] * len(class_C) + best
    gap = (most - next_most).item()
    return Ripple(int(class_C[best]), gap, waves.of(row[None], height, width)[0])


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


def _by_frequency(
    shown: Shown, frequency_F2: Tensor, rms: float, each: int
) -> tuple[Tensor, Tensor]:
    """The victim's lead to each class at the best phase, and that phase, both [F, K]."""
    where = frequency_F2.device
    phase_P = torch.arange(PHASES, device=where) * (2 * math.pi / PHASES)
    waves = Waves(frequency_F2.repeat_interleave(PHASES, 0), phase_P.repeat(len(frequency_F2)), rms)
    return at_best_phase(shown.leads(waves, each).unflatten(0, (-1, PHASES)), phase_P)


def at_best_phase(lead_FPK: Tensor, phase_P: Tensor) -> tuple[Tensor, Tensor]:
    """Top of the constant and first harmonic through evenly spaced phases, and where, [F, K]."""
    cosine_FK = 2 * (lead_FPK * phase_P.cos()[:, None]).mean(1)
    sine_FK = 2 * (lead_FPK * phase_P.sin()[:, None]).mean(1)
    return lead_FPK.mean(1) + torch.hypot(cosine_FK, sine_FK), torch.atan2(sine_FK, cosine_FK)
