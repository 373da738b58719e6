"""Pruning below a threshold that the clean split chooses; published code asks the test set."""

from __future__ import annotations

import torch

from ngf.defenses import Clean
from ngf.defenses._steps import accuracy
from ngf.masks import Layer, PerLayer
from ngf.models import Classifier

THRESHOLDS = [0.05 * k for k in range(1, 19)]  # to 0.9


def prune_by_threshold(
    model: Classifier, layers: dict[str, Layer], mask: PerLayer, clean: Clean, max_drop: float
) -> dict[str, float]:
    """Close the neurons at or below the largest threshold that keeps accuracy; what was done."""
    training = model.training
    before = {name: one.weight.detach().clone() for name, one in layers.items()}
    least = accuracy(model, clean) - max_drop
    best, best_pruned = 0.0, 0
    last = 0
    for threshold in THRESHOLDS:
        pruned = sum(int((one <= threshold).sum()) for one in mask.values())
        if pruned > last:
            _close(layers, before, mask, threshold)
            if accuracy(model, clean) < least:
                break
        best, best_pruned, last = threshold, pruned, pruned
    _close(layers, before, mask, best)
    model.train(training)
    return {"pruned": best_pruned, "threshold": round(best, 2) if best_pruned else 0.0}


@torch.no_grad()
def _close(layers: dict[str, Layer], before: PerLayer, mask: PerLayer, threshold: float) -> None:
    for name, one in layers.items():
        open_C = (mask[name] > threshold) | (threshold == 0)
        one.weight.copy_(before[name] * one.factors(open_C.to(one.weight.dtype)))
