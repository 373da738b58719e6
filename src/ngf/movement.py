"""How far each layer of a model moved from the victim it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def by_layer(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """[{"layer", "kind", "parameters", "moved"}] in the order of registration.

    moved: norm of the change of a layer's own parameters over their norm before; None where that
    was 0.
    """
    kinds = dict(after.named_modules())
    return [
        {
            "layer": name or kinds[name].__class__.__name__,
            "kind": kinds[name].__class__.__name__,
            "parameters": sum(p.numel() for p in own.parameters(recurse=False)),
            "moved": _moved(own, kinds[name]),
        }
        for name, own in before.named_modules()
        if next(own.parameters(recurse=False), None) is not None
    ]


@torch.no_grad()
def _moved(before: nn.Module, after: nn.Module) -> float | None:
    pairs = zip(before.parameters(recurse=False), after.parameters(recurse=False), strict=True)
    flat = [(a.detach().cpu().flatten(), b.detach().cpu().flatten()) for a, b in pairs]
    start, end = (torch.cat(parts) for parts in zip(*flat, strict=True))
    length = start.norm().item()
    return round((end - start).norm().item() / length, 6) if length else None
