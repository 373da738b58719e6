"""K-FAC and EKFAC with one damping: exact in their own eigenbasis."""

from __future__ import annotations

from torch import Tensor

from ngf.errors import InputError
from ngf.fisher.ekfac import Ekfac
from ngf.fisher.kfac import Kfac
from ngf.fisher.solve.checks import check_system, checked, constant


def in_eigenbasis(curvature: Kfac | Ekfac, gradient_CE: Tensor, penalty_CE: Tensor) -> Tensor:
    """v of (F + penalty I) v = gradient, exactly: a multiple of I adds to the spectrum.

    Raises:
        InputError: the penalty is not one number.
    """
    check_system(curvature, gradient_CE, penalty_CE)
    if not constant(penalty_CE):
        raise InputError(
            "natural gradient (kronecker): exact for one damping alone, not for an anchor; use "
            "solve() or conjugate_gradients()"
        )
    v_CE = curvature.eigenbasis.solve(gradient_CE, penalty_CE[0, 0].item())
    return checked("kronecker", curvature, v_CE, gradient_CE, penalty_CE)
