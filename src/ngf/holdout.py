"""Clean images that the defense never sees: the defender's own check of what it did to ACC.

The defender has no other measure of harm: the test split and the trigger are not his.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ngf import metrics, split
from ngf.defenses import Clean
from ngf.errors import InputError
from ngf.models import Classifier

if TYPE_CHECKING:
    from ngf.datasets import Split

OPTION = "purify.holdout (--holdout)"
ROUNDING = 1e-9  # a drop of exactly the limit is within it, whatever floats make of it


def divide(clean: Split, share: float, seed: int) -> tuple[Split, Split]:
    """(what the defense gets, what is held out): `share` of the images, each class in proportion.

    Raises:
        InputError: a class would have no image on one of the two sides.
    """
    counts = np.bincount(clean.y_N, minlength=len(clean.classes))
    if counts.min() < 2:
        single = clean.classes[counts.argmin()]
        raise InputError(
            f"{OPTION}: class '{single}' has {counts.min()} clean image, and one is kept to check "
            "ACC; give it more, or set holdout to 0"
        )
    try:
        held_M = split.stratified(clean.y_N, share, clean.classes, seed)
    except InputError as error:
        raise InputError(f"{OPTION}: {error}") from error
    kept_K = np.setdiff1d(np.arange(len(clean.y_N)), held_M)
    return _rows(clean, kept_K), _rows(clean, held_M)


def _rows(clean: Split, rows: np.ndarray) -> Split:
    return replace(clean, x_NHWC=clean.x_NHWC[rows], y_N=clean.y_N[rows])


def accuracy(model: Classifier, held: Clean) -> float:
    """The share of held-out images that get their class, in [0, 1]."""
    answers_N = metrics.predict({"model": model}, held.x_NHWC)["model"]
    return (answers_N == held.y_N).double().mean().item()


@dataclass(frozen=True)
class Verdict:
    """model: the one to go on with. numbers: for the report. warning: empty where ACC held."""

    model: Classifier
    numbers: dict[str, float]
    warning: str = ""


class Guard:
    """Compares models with the victim on held-out images.

    limit: the largest drop of ACC that passes, as a fraction.
    """

    def __init__(self, victim: Classifier, held: Clean, limit: float) -> None:
        self.held, self.limit = held, limit
        self.before = accuracy(victim, held)

    def judge(self, purified: Classifier, way_back: Iterable[tuple[int, Classifier]]) -> Verdict:
        """The purified model, or the first of `way_back` that passes where it does not.

        Args:
            way_back: (step, model), the latest first and the victim itself last, as step 0; empty
                where the purified model is to be returned in any case.
        """
        after = accuracy(purified, self.held)
        numbers = {
            "holdout_images": len(self.held.y_N),
            "holdout_acc_before": self.before,
            "holdout_acc_after": after,
        }
        if self._passes(after):
            return Verdict(purified, numbers)
        fell = (
            f"ACC on {len(self.held.y_N)} held-out images fell from {self.before:.1%} to "
            f"{after:.1%}, more than max_acc_drop {self.limit:.1%}"
        )
        for step, earlier in way_back:
            acc = accuracy(earlier, self.held)
            if self._passes(acc):
                numbers |= {"holdout_acc_after": acc, "holdout_acc_refused": after}
                where = f"step {step} ({acc:.1%})" if step else "THE VICTIM: no snapshot passed"
                return Verdict(
                    earlier,
                    {**numbers, "stepped_back_to": step},
                    f"{fell}; stepped back to {where}",
                )
        return Verdict(purified, numbers, fell)

    def _passes(self, acc: float) -> bool:
        return self.before - acc <= self.limit + ROUNDING
