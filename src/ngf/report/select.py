"""What of an evaluation is drawn: points along purification, a matrix that fits a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BEFORE_AND_AFTER = {"victim": "before", "model": "after"}
MOST_CLASSES = 50  # of a matrix that is shown whole
WORST = 20  # classes of a larger one


@dataclass(frozen=True)
class Matrix:
    """names of K classes; shares_KK of each class's images (rows) answered with each (columns).

    right: share of all clean images on the whole matrix's diagonal.
    """

    names: Sequence[str]
    shares_KK: np.ndarray
    right: float


def matrices(found: Mapping[str, Any]) -> tuple[dict[str, Matrix], bool]:
    """({who: matrix} of victim and model, whether they are a part) of a confusion.json.

    Above MOST_CLASSES the part is the WORST classes of the model, by the share of right answers.
    """
    counts = {who: np.array(found[who], float) for who in BEFORE_AND_AFTER}
    shares = {who: n / np.maximum(n.sum(1, keepdims=True), 1) for who, n in counts.items()}
    n_classes = len(found["classes"])
    chosen = np.arange(n_classes)
    if n_classes > MOST_CLASSES:
        chosen = np.sort(shares["model"].diagonal().argsort(kind="stable")[:WORST])
    names = [str(found["classes"][label]) for label in chosen]
    drawn = {
        who: Matrix(names, share[np.ix_(chosen, chosen)], float(n.trace() / max(n.sum(), 1)))
        for (who, share), n in zip(shares.items(), counts.values(), strict=True)
    }
    return drawn, len(chosen) < n_classes


def points(metrics: Mapping[str, Any]) -> list[tuple[str, dict[str, float | None]]]:
    """(name, {"acc", "asr", "ra"}) from the victim by the snapshots to the purified model."""
    ends = {
        who: {key: found and found["value"] for key, found in metrics[who].items()}
        for who in BEFORE_AND_AFTER
    }
    way = [(str(point["step"]), point) for point in metrics.get("along", ())]
    return [("before", ends["victim"]), *way, ("after", ends["model"])]
