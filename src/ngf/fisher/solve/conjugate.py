"""Preconditioned conjugate gradients: any curvature, by its products alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ngf.errors import InputError
from ngf.fisher.curvature import Curvature
from ngf.fisher.solve.checks import check_system
from ngf.fisher.solve.precondition import Inverse, approximate_inverse

ITERATIONS = 1_000
TOLERANCE = {torch.float64: 1e-7}  # else 1e-4


@dataclass(frozen=True)
class Solution:
    """v_CE [C, E]; iterations; |gradient - (F + diag(penalty)) v| / |gradient|, as measured."""

    v_CE: Tensor
    iterations: int
    residual: float


def conjugate_gradients(
    curvature: Curvature,
    gradient_CE: Tensor,
    penalty_CE: Tensor,
    *,
    tolerance: float | None = None,
    iterations: int = ITERATIONS,
    inverse: Inverse | None = None,
) -> Solution:
    """v of (F + diag(penalty)) v = gradient up to a relative residual.

    The recursion's own residual drifts from the true one by rounding, so the true one decides:
    where it is still too large, the recursion starts again from there.

    Args:
        tolerance: 1e-7 in float64 and 1e-4 in float32 by default.
        iterations: at most so many.
        inverse: preconditioner; by default what `precondition.approximate_inverse` picks.

    Raises:
        InputError: not converged, or the curvature is not positive along a direction.
    """
    check_system(curvature, gradient_CE, penalty_CE)
    tolerance = TOLERANCE.get(gradient_CE.dtype, 1e-4) if tolerance is None else tolerance
    inverse = inverse or approximate_inverse(curvature, penalty_CE)
    goal = tolerance * gradient_CE.norm()
    v_CE, rest_CE = torch.zeros_like(gradient_CE), gradient_CE
    used = 0
    while not rest_CE.norm() <= goal:
        if used >= iterations:
            raise _not_converged(used, rest_CE.norm() / gradient_CE.norm(), tolerance, penalty_CE)
        more_CE, count = _recursion(
            curvature, rest_CE, penalty_CE, inverse, goal=goal, iterations=iterations - used
        )
        v_CE, used = v_CE + more_CE, used + count
        rest_CE = gradient_CE - curvature.product(v_CE) - penalty_CE * v_CE
    norm = gradient_CE.norm()
    return Solution(v_CE, used, (rest_CE.norm() / norm).item() if norm > 0 else 0.0)


def _recursion(
    curvature: Curvature,
    gradient_CE: Tensor,
    penalty_CE: Tensor,
    inverse: Inverse,
    *,
    goal: Tensor,
    iterations: int,
) -> tuple[Tensor, int]:
    """(v, iterations): until the recursion's residual is below `goal`."""
    v_CE, rest_CE = torch.zeros_like(gradient_CE), gradient_CE.clone()
    ahead_CE = inverse(rest_CE)
    along_CE = ahead_CE.clone()
    slope = (rest_CE * ahead_CE).sum()
    for count in range(1, iterations + 1):
        curved_CE = curvature.product(along_CE).add_(penalty_CE * along_CE)
        bend = (along_CE * curved_CE).sum()
        if not (bend > 0 and slope > 0 and torch.isfinite(bend)):
            raise _not_positive(count, bend, penalty_CE)
        v_CE.add_(slope / bend * along_CE)
        rest_CE.sub_(slope / bend * curved_CE)
        if rest_CE.norm() <= goal:
            return v_CE, count
        ahead_CE = inverse(rest_CE)
        before, slope = slope, (rest_CE * ahead_CE).sum()
        along_CE.mul_(slope / before).add_(ahead_CE)
    return v_CE, iterations


def _not_converged(used: int, residual: Tensor, tolerance: float, penalty_CE: Tensor) -> InputError:
    return InputError(
        f"natural gradient (conjugate): relative residual {residual.item():.1e} after {used} "
        f"iterations, asked for {tolerance:g}; raise the damping (the least is "
        f"{penalty_CE.min().item():g}), the tolerance or the number of iterations"
    )


def _not_positive(count: int, bend: Tensor, penalty_CE: Tensor) -> InputError:
    return InputError(
        f"natural gradient (conjugate): the curvature along direction {count} is {bend.item():g}, "
        f"not positive; raise the damping (the least is {penalty_CE.min().item():g})"
    )
