"""Diagonal curvature: one division a parameter."""

from __future__ import annotations

from torch import Tensor

from ngf.fisher.diagonal_head import DiagonalFisher
from ngf.fisher.solve.checks import check_system, checked


def divide(curvature: DiagonalFisher, gradient_CE: Tensor, penalty_CE: Tensor) -> Tensor:
    """v of (diag(F) + penalty) v = gradient."""
    check_system(curvature, gradient_CE, penalty_CE)
    v_CE = gradient_CE / (curvature.diagonal() + penalty_CE)
    return checked("diagonal", curvature, v_CE, gradient_CE, penalty_CE)
