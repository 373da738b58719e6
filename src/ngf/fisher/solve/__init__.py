"""Natural-gradient steps: v of (F + diag(penalty)) v = gradient, by the method that fits.

The penalty of a parameter is eta diag(F0) + damping: the anchor's curvature is inside the solve.
All methods answer the same question; each is a file of its own, and exact but for conjugate
gradients, which stop at a tolerance.
"""

from __future__ import annotations

from torch import Tensor

from ngf.fisher.curvature import Curvature
from ngf.fisher.diagonal_head import DiagonalFisher
from ngf.fisher.ekfac import Ekfac
from ngf.fisher.empirical import EmpiricalFisher
from ngf.fisher.kfac import Kfac
from ngf.fisher.solve.checks import check_system, constant
from ngf.fisher.solve.conjugate import conjugate_gradients
from ngf.fisher.solve.dense import cholesky
from ngf.fisher.solve.elementwise import divide
from ngf.fisher.solve.kronecker import in_eigenbasis
from ngf.fisher.solve.sample_space import woodbury

__all__ = ["choose", "conjugate_gradients", "solve"]

DENSE = 3_000  # parameters: a Cholesky factor in less than a second
SAMPLES = 8_000  # a Gram matrix of 256 MB in float32
EXPECTED = 100  # iterations of conjugate gradients, to compare their cost with others'


def solve(
    curvature: Curvature, gradient_CE: Tensor, penalty_CE: Tensor, tolerance: float | None = None
) -> Tensor:
    """v_CE of (F + diag(penalty)) v = gradient.

    Args:
        penalty_CE: positive, one value a parameter; one number for all of them may be cheaper.
        tolerance: relative residual of conjugate gradients; the other methods are exact.

    Raises:
        InputError: the system is not finite, not positive, singular, or does not converge.
    """
    check_system(curvature, gradient_CE, penalty_CE)
    method = choose(curvature, penalty_CE)
    if method == "conjugate":
        return conjugate_gradients(curvature, gradient_CE, penalty_CE, tolerance=tolerance).v_CE
    exact = {
        "elementwise": divide,
        "kronecker": in_eigenbasis,
        "dense": cholesky,
        "sample_space": woodbury,
    }
    return exact[method](curvature, gradient_CE, penalty_CE)  # type: ignore[operator]


def choose(curvature: Curvature, penalty_CE: Tensor) -> str:
    """The method's name: "elementwise", "kronecker", "dense", "sample_space" or "conjugate"."""
    classes, inputs = curvature.shape
    if isinstance(curvature, DiagonalFisher):
        return "elementwise"
    if isinstance(curvature, Kfac | Ekfac) and constant(penalty_CE):
        return "kronecker"
    if classes * inputs <= DENSE:
        return "dense"
    if isinstance(curvature, EmpiricalFisher) and _few_samples(curvature, penalty_CE):
        return "sample_space"
    return "conjugate"


def _few_samples(curvature: EmpiricalFisher, penalty_CE: Tensor) -> bool:
    """Whether the Gram matrix costs less than the products of conjugate gradients would."""
    classes, inputs = curvature.shape
    n = len(curvature.features_NE)
    each = classes + inputs if constant(penalty_CE) else classes * inputs
    gram = n**2 * each + n**3 / 3
    return n <= min(SAMPLES, classes * inputs) and gram <= EXPECTED * 4 * n * classes * inputs
