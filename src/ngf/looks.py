"""Looks: the searches for what leads a victim astray, one after the other until one shows enough.

A bend first, for it shows on no other backdoor that was tried; then a displacement of the whole
image, beside it windows of it where that is not clear, waves and styles together, each for what
those before cannot see; then a displacement of the whole image once more, one for each class, and
in the end styles and windows once more. `exposure.py`, `warps.py`, `waves.py` and `styles.py` say
how, `places.py` what stands for what windows show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from ngf.exposure import (
    TRIED,
    Draw,
    Search,
    Suspicion,
    everywhere,
    for_each_class,
    led_to,
    left_in,
    near,
    suspect,
    windows,
)
from ngf.margins import Judge, Probability, Sureness
from ngf.places import narrowed
from ngf.styles import EACH, LONGER, Styles
from ngf.warps import Warps
from ngf.waves import Shown, strongest

PER = 8  # images of a step under each displacement of the whole image, or each bend
CLEAR = 0.4  # a gap of the whole image, or of windows, from which on no more windows are asked
CLASSES = 64  # more are not searched one by one: that would take longer than all other looks
LASTING = 0.75  # left of what was found, from which on clean images may use it


@dataclass
class Looks:
    """At one victim.

    victim, sieved, copy: see `ngf.exposure.suspect`. x_NCHW, y_N: clean images that waves are laid
    over and that say how sure a model is. draw: batches of other views at each call; apart:
    likewise, for warps, styles and the last looks alone, so that the model comes out the same
    without these where they show nothing. by_class: likewise, of equally many images of each class,
    see `ngf.views`. generator: draws what waves need. most: images of a step, at most. steps: of
    each search. moves: displacements that stand for a backdoor. rippled: what waves showed, once
    they were looked at.
    """

    victim: nn.Module
    sieved: nn.Module
    copy: nn.Module
    x_NCHW: Tensor
    y_N: Tensor
    draw: Draw
    apart: Draw
    by_class: Draw
    generator: torch.Generator
    most: int
    steps: int
    moves: int
    rippled: Suspicion | None = field(default=None, init=False)
    _sure: dict[nn.Module, Sureness] = field(default_factory=dict, init=False)

    def first(
        self,
        least_gap: float,
        *,
        warps: float,
        window: float,
        waves: float,
        styles: float,
        classes: float,
    ) -> Suspicion:
        """What the first look shows that shows so much; where none does, what may show most.

        Args:
            warps, window, waves, styles, classes: the root mean square of each, see `ngf.warps`,
                `ngf.waves`, `ngf.styles` and, of window and classes, `ngf.exposure`; 0 leaves a
                look out.
        """
        found = []
        for one in self._found(least_gap, warps, window, waves, styles, classes):
            found.append(one)
            if one.gap >= least_gap:
                break
        return max(found, key=lambda one: one.gap)

    def stand_for(self, found: Suspicion, radius: float, model: nn.Module) -> Tensor:
        """The displacements that stand for what was found.

        Where it can be followed: those of that root mean square which draw this model, a filtered
        one, to its class, looked for from what was found on. From nothing, a search that only now
        and then meets the backdoor would miss it here too. Where it lies in windows and leads to
        one class: what `ngf.places` finds there.
        """
        if found.windowed and found.target >= 0:
            limits = {"moves": self.moves, "steps": self.steps, "most": self.most}
            return narrowed(found, model, self.copy, self.apart, **limits)
        if not found.followed:
            return found.moves_MCHW
        wanted = near(found.moves_MCHW, PER, moves=self.moves, radius=radius)
        return led_to(model, found.target, self.draw, wanted, steps=self.steps, most=self.most)

    def seen_in(self, sieved: nn.Module, found: Suspicion) -> Suspicion:
        """What was found, as much as is left of it in this sieved model."""
        size = max(len(found.moves_MCHW), min(self.most, PER * TRIED))
        batches = list(self.draw(size, self.steps))
        return replace(found, left=left_in(sieved, found, self.victim, self.copy, batches))

    def _found(
        self,
        enough: float,
        warps: float,
        window: float,
        waves: float,
        styles: float,
        classes: float,
    ) -> Iterator[Suspicion]:
        astray = partial(self._astray, enough)
        windowed = windows(self.x_NCHW.shape[2], self.x_NCHW.shape[3], window)
        styled = partial(astray, Styles(styles, EACH), self._sureness, self.apart, longer=LONGER)
        if warps:
            yield astray(Warps(warps, PER), self._sureness, self.apart)
        shown = [astray(everywhere(PER), Probability, self.draw)]
        if window and shown[-1].gap < max(CLEAR, enough):
            shown.append(astray(windowed, self._sureness, self.draw))
            if enough <= shown[-1].gap < CLEAR:
                shown.append(astray(windowed, self._sureness, self.apart))
        yield _furthest(shown, enough)
        made = []
        if waves:
            self.rippled = self._waved(waves)
            made.append(self.rippled)
        if styles:
            made.append(styled())
        if made:
            yield _furthest(made, enough)
        # What follows but for classes: the first search may have missed what is there.
        again = [astray(everywhere(PER), Probability, self.apart)]
        if window and enough <= again[-1].gap < CLEAR:
            again.append(astray(windowed, self._sureness, self.apart))
        yield _furthest(again, enough)
        if classes and 1 < (count := len(self.y_N.unique())) <= CLASSES:
            yield self._class_by_class(enough, count, classes)
        if styles:
            yield styled()
        if window:
            yield astray(windowed, self._sureness, self.apart)

    def _astray(
        self, enough: float, wanted: Search, judge: Judge, draw: Draw, longer: int = 1
    ) -> Suspicion:
        models, steps = (self.victim, self.sieved, self.copy), longer * self.steps
        return suspect(
            *models, draw, wanted, steps=steps, most=self.most, judge=judge, enough=enough
        )

    def _class_by_class(self, enough: float, count: int, rms: float) -> Suspicion:
        """One of many classes is always led away, as it is by nature: towards its like.

        What a first sieve hardly changes is no more than that, and shows nothing.
        """
        search = for_each_class(count, rms)
        found = self._astray(enough, search, self._sureness, self.by_class, longer=LONGER)
        return replace(found, gap=min(found.gap, 0.0)) if found.left >= LASTING else found

    def _waved(self, rms: float) -> Suspicion:
        models = self.victim, self.sieved, self.copy
        shown = Shown(self.x_NCHW, self.y_N, self.generator, min(self.most, PER * TRIED))
        return strongest(*models, shown, rms=rms, moves=self.moves, judge=self._sureness)

    def _sureness(self, net: nn.Module) -> Sureness:
        if net not in self._sure:  # all images go through it once
            self._sure[net] = Sureness(net, self.x_NCHW)
        return self._sure[net]


def _furthest(made: Sequence[Suspicion], enough: float) -> Suspicion:
    """The one that leads furthest, beside the next one if there is one that shows enough too.

    Ripples open a part of a style's backdoor, and what they open is not all of it. So does what
    the whole image shows of a patch. Their gaps are no one measure; of waves and styles a wave's is
    the stricter.
    """
    first, *others = sorted(made, key=lambda one: -one.gap)
    return replace(first, beside=next((one for one in others if one.gap >= enough), None))
