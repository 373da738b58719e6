"""Small heads: a matrix of all parameters and its Cholesky factor."""

from __future__ import annotations

import torch
from torch import Tensor

from ngf.fisher.curvature import Curvature
from ngf.fisher.solve.checks import check_system, checked, singular


def cholesky(curvature: Curvature, gradient_CE: Tensor, penalty_CE: Tensor) -> Tensor:
    """v of (F + diag(penalty)) v = gradient, exactly: P^3 / 3 operations, P = C E."""
    check_system(curvature, gradient_CE, penalty_CE)
    matrix = curvature.dense()
    matrix.diagonal().add_(penalty_CE.flatten())
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise singular("dense", penalty_CE)
    v_CE = torch.cholesky_solve(gradient_CE.reshape(-1, 1), factor).view_as(gradient_CE)
    return checked("dense", curvature, v_CE, gradient_CE, penalty_CE)
