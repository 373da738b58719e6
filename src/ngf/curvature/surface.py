"""The loss around a model, along two directions of its parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngf.curvature.parameters import trained

RISE = 2.0  # nats that the sharper model's quadratic rises to at the edge


def reach(lambda_max: float) -> float:
    """How far to go along a unit eigenvector for a rise of RISE, where the loss is quadratic."""
    return math.sqrt(2 * RISE / lambda_max)


@torch.no_grad()
def surface(
    model: nn.Module, x_NCHW: Tensor, y_N: Tensor, vectors_2D: Tensor, *, reach: float, steps: int
) -> dict[str, Any]:
    """{"alpha": [steps], "loss": [steps][steps]} at θ + a u1 + b u2, rows a, columns b.

    Args:
        vectors_2D: unit vectors over all parameters that `measure` differentiates.
        reach: alpha runs from -reach to reach. steps: odd, so that the model is in the middle.
    """
    parameters = list(trained(model).values())
    start_D = nn.utils.parameters_to_vector([p.contiguous() for p in parameters])
    alphas = torch.linspace(-reach, reach, steps).tolist()

    def loss(a: float, b: float) -> float:
        _put(parameters, start_D + a * vectors_2D[0] + b * vectors_2D[1])
        return float(f"{cross_entropy(model(x_NCHW), y_N).item():.5g}")

    try:
        rows = [[loss(a, b) for b in alphas] for a in alphas]
    finally:
        _put(parameters, start_D)
    return {"alpha": [float(f"{a:.5g}") for a in alphas], "loss": rows}


def _put(parameters: list[nn.Parameter], flat_D: Tensor) -> None:
    parts = flat_D.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view(parameter.shape))
