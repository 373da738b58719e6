"""ACC, ASR and RA of several models in one pass over the test images.

ACC   share of clean images that get their class.
ASR   share of triggered images that get the class the attacker wants; images that already have it
      are left out.
RA    share of the same triggered images that get their own class.

Each is a fraction in [0, 1] with a 95% Wilson interval (Wilson 1927), n and a value per class. What
a never-poisoned reference says to the same triggered images is ASR's floor and RA's ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ngf.device import autocast
from ngf.images import Streamed, batches_of
from ngf.progress import track
from ngf.training import pixels

if TYPE_CHECKING:
    from ngf.attacks import Trigger

Show = Callable[[Tensor, Tensor], Tensor]

BATCH = 512
Z_95 = 1.959963984540054


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion; (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share, z2n = hits / n, Z_95**2 / n
    centre = share + z2n / 2
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2n / (4 * n))
    # At 0 and n hits one bound is exact; rounding would miss it by a hair.
    low = 0.0 if hits == 0 else (centre - half) / (1 + z2n)
    high = 1.0 if hits == n else (centre + half) / (1 + z2n)
    return low, high


def proportion(hit_N: Tensor, y_N: Tensor, n_classes: int) -> dict[str, Any] | None:
    """Value, interval, n and per-class values of boolean `hit_N`; None where N is 0."""
    if not len(hit_N):
        return None
    hits, n = int(hit_N.sum()), len(hit_N)
    low, high = wilson(hits, n)
    seen_C = torch.bincount(y_N, minlength=n_classes).tolist()
    hits_C = torch.bincount(y_N[hit_N], minlength=n_classes).tolist()
    per_class = [h / s if s else None for h, s in zip(hits_C, seen_C, strict=True)]
    return {"value": hits / n, "low": low, "high": high, "n": n, "per_class": per_class}


def difference(first_N: Tensor, second_N: Tensor) -> dict[str, Any] | None:
    """Share of `first_N` minus that of `second_N`, boolean, of the same images; None where N is 0.

    With Newcombe's 95% interval for paired proportions (1998, Statistics in Medicine 17, 2635-2650,
    method 10): Wilson's intervals of both, squared and added, less what they have in common.
    """
    n = len(first_N)
    if not n:
        return None
    both, neither = int((first_N & second_N).sum()), int((~first_N & ~second_N).sum())
    hits_1, hits_2 = int(first_N.sum()), int(second_N.sum())
    phi = _phi(both, hits_1 - both, hits_2 - both, neither)
    (low_1, high_1), (low_2, high_2) = wilson(hits_1, n), wilson(hits_2, n)
    share_1, share_2 = hits_1 / n, hits_2 / n
    below = _apart(share_1 - low_1, high_2 - share_2, phi)
    above = _apart(high_1 - share_1, share_2 - low_2, phi)
    value = (hits_1 - hits_2) / n
    return {"value": value, "low": value - below, "high": value + above, "n": n}


def _phi(both: int, first: int, second: int, neither: int) -> float:
    """The correlation of a 2x2 table, its numerator corrected for continuity where positive."""
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if not margins:
        return 0.0
    product = both * neither - first * second
    half = (both + first + second + neither) / 2
    return (max(product - half, 0) if product > 0 else product) / math.sqrt(margins)


def _apart(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))


def confusion(predicted_N: Tensor, y_N: Tensor, n_classes: int) -> list[list[int]]:
    """How many images of each class (rows) were answered with each class (columns)."""
    cells_N = y_N * n_classes + predicted_N
    return torch.bincount(cells_N, minlength=n_classes**2).view(n_classes, n_classes).tolist()


@torch.inference_mode()
def predict(
    models: Mapping[str, nn.Module],
    x_NHWC: Tensor | Streamed,
    show: Show = lambda x_BHWC, rows_B: x_BHWC,
    rows_N: Tensor | None = None,
) -> dict[str, Tensor]:
    """Predicted classes [N] of each model for uint8 images, or for these rows of them.

    Args:
        show: what the models see of the images of some rows, [B, H, W, 3] and [B].
    """
    device = x_NHWC.device
    found: dict[str, list[Tensor]] = {name: [] for name in models}
    rows_N = torch.arange(len(x_NHWC), device=device) if rows_N is None else rows_N
    rows_KB = rows_N.split(BATCH)
    parts = zip(batches_of(x_NHWC, rows_KB), rows_KB, strict=True)
    for x_BHWC, rows_B in track(parts, "measure", len(rows_KB)):
        x_NCHW = pixels(show(x_BHWC, rows_B))
        for name, model in models.items():
            with autocast(device):
                found[name].append(model(x_NCHW).argmax(1))
    return {name: torch.cat(classes) for name, classes in found.items()}


def hits(
    models: Mapping[str, nn.Module],
    x_NHWC: Tensor | Streamed,
    y_N: Tensor,
    trigger: Trigger,
    clean: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, dict[str, Tensor]], Tensor]:
    """({model: {"acc": [N], "asr": [M], "ra": [M]}}, y_M): which images count for each, boolean.

    M are the test images that the attacker wants to be something else; none in the benign row.

    Args:
        x_NHWC, y_N: test images uint8 [N, H, W, 3] with labels int64 [N].
        clean: what `predict` found for the images without trigger, where that is known.
    """
    wanted_N = trigger.wanted(y_N)
    rows_M = (wanted_N >= 0).nonzero().flatten()
    wanted_M, y_M = wanted_N[rows_M], y_N[rows_M]
    clean = predict(models, x_NHWC) if clean is None else clean

    def triggered_rows(x_BHWC: Tensor, rows_B: Tensor) -> Tensor:
        return trigger.apply(x_BHWC, y_N[rows_B])

    triggered = predict(models, x_NHWC, triggered_rows, rows_M) if len(y_M) else {}
    nothing_M = y_M  # the benign row: no image is triggered
    found = {
        name: {
            "acc": clean[name] == y_N,
            "asr": triggered.get(name, nothing_M) == wanted_M,
            "ra": triggered.get(name, nothing_M) == y_M,
        }
        for name in models
    }
    return found, y_M


def shares(
    found: Mapping[str, Mapping[str, Tensor]], y_N: Tensor, y_M: Tensor, n_classes: int
) -> dict[str, dict[str, Any]]:
    """{model: {"acc", "asr", "ra"}} of what `hits` found; ASR and RA None where no image counts."""
    return {
        name: {
            key: proportion(hit, y_N if key == "acc" else y_M, n_classes)
            for key, hit in three.items()
        }
        for name, three in found.items()
    }


def measure(
    models: Mapping[str, nn.Module],
    x_NHWC: Tensor | Streamed,
    y_N: Tensor,
    trigger: Trigger,
    n_classes: int,
) -> dict[str, dict[str, Any]]:
    """`shares` of `hits`."""
    found, y_M = hits(models, x_NHWC, y_N, trigger)
    return shares(found, y_N, y_M, n_classes)
