"""The empirical Fisher has rank n at most: a system of n samples in place of C E parameters.

With one gradient r_n h_n^T a row of J and D = diag(penalty), Woodbury's identity reads

    (D + J^T J / n)^-1 = D^-1 - D^-1 J^T (n I + J D^-1 J^T)^-1 J D^-1.

J is never formed: J v and J^T w are products with residuals and features, and so is the Gram matrix
J D^-1 J^T = sum_c (r_c r_c^T) ∘ (H diag(1 / D_c) H^T), r_c the residuals of class c.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ngf.fisher.empirical import EmpiricalFisher
from ngf.fisher.solve.checks import check_system, checked, constant, singular


def woodbury(curvature: EmpiricalFisher, gradient_CE: Tensor, penalty_CE: Tensor) -> Tensor:
    """v of (F + diag(penalty)) v = gradient, exactly: n^2 C E operations and [n, n] of memory.

    A penalty of one number costs n^2 (C + E). Where the penalty is small the identity subtracts
    what nearly cancels, so the answer is refined once with its own residual.
    """
    check_system(curvature, gradient_CE, penalty_CE)
    factor = _factor(curvature, penalty_CE)
    v_CE = _once(curvature, gradient_CE, penalty_CE, factor)
    rest_CE = gradient_CE - curvature.product(v_CE) - penalty_CE * v_CE
    v_CE = v_CE + _once(curvature, rest_CE, penalty_CE, factor)
    return checked("sample space", curvature, v_CE, gradient_CE, penalty_CE)


def gram(curvature: EmpiricalFisher, penalty_CE: Tensor) -> Tensor:
    """J D^-1 J^T: [N, N]."""
    h_NE, r_NC = curvature.features_NE, curvature.residual_NC
    if constant(penalty_CE):
        return (r_NC @ r_NC.T) * (h_NE @ h_NE.T) / penalty_CE[0, 0]
    total_NN = h_NE.new_zeros(len(h_NE), len(h_NE))
    for r_N, penalty_E in zip(r_NC.T, penalty_CE, strict=True):
        gradients_NE = r_N[:, None] * h_NE * penalty_E.rsqrt()
        total_NN.addmm_(gradients_NE, gradients_NE.T)
    return total_NN


def _factor(curvature: EmpiricalFisher, penalty_CE: Tensor) -> Tensor:
    """Cholesky factor of n I + J D^-1 J^T."""
    matrix_NN = gram(curvature, penalty_CE)
    matrix_NN.diagonal().add_(len(matrix_NN))
    factor_NN, failed = torch.linalg.cholesky_ex(matrix_NN)
    if failed:
        raise singular("sample space", penalty_CE)
    return factor_NN


def _once(
    curvature: EmpiricalFisher, gradient_CE: Tensor, penalty_CE: Tensor, factor_NN: Tensor
) -> Tensor:
    h_NE, r_NC = curvature.features_NE, curvature.residual_NC
    free_CE = gradient_CE / penalty_CE
    slopes_N1 = ((h_NE @ free_CE.T) * r_NC).sum(1, keepdim=True)  # J D^-1 g
    weights_N1 = torch.cholesky_solve(slopes_N1, factor_NN)
    return free_CE - (weights_N1 * r_NC).T @ h_NE / penalty_CE
