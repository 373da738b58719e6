"""Approximate inverses of F + diag(penalty), for conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ngf.fisher.curvature import Curvature
from ngf.fisher.eigenbasis import Eigenbasis
from ngf.fisher.ekfac import Ekfac
from ngf.fisher.empirical import EmpiricalFisher
from ngf.fisher.kfac import Kfac
from ngf.fisher.solve.deflation import Deflated
from ngf.fisher.true import TrueFisher

Inverse = Callable[[Tensor], Tensor]  # [C, E] -> [C, E], linear, symmetric, positive


def approximate_inverse(curvature: Curvature, penalty_CE: Tensor) -> Inverse:
    """The preconditioner for this curvature and penalty."""
    if isinstance(curvature, Kfac | Ekfac):
        return eigenbasis_inverse(curvature.eigenbasis, penalty_CE)
    if isinstance(curvature, TrueFisher | EmpiricalFisher):
        return Deflated(curvature, curvature.diagonal(), penalty_CE)
    return diagonal_inverse(curvature, penalty_CE)


def eigenbasis_inverse(basis: Eigenbasis, penalty_CE: Tensor) -> Inverse:
    """Exact for a Kronecker curvature and one damping; an anchor enters by its mean.

    With EKFAC's basis it also serves the curvature that EKFAC approximates. That is the better
    choice for an unsure head (predictions close to uniform) with a small damping and no anchor.
    """
    mean = penalty_CE.mean().item()
    return lambda gradient_CE: basis.solve(gradient_CE, mean)


def diagonal_inverse(curvature: Curvature, penalty_CE: Tensor) -> Inverse:
    """1 / (diag(F) + penalty)."""
    inverse_CE = 1 / (curvature.diagonal() + penalty_CE)
    return lambda gradient_CE: inverse_CE * gradient_CE
