"""What every solver asks of its system, and what it promises of its answer."""

from __future__ import annotations

import torch
from torch import Tensor

from ngf.errors import InputError
from ngf.fisher.curvature import Curvature


def check_system(curvature: Curvature, gradient_CE: Tensor, penalty_CE: Tensor) -> None:
    """`InputError` unless shapes agree, the gradient is finite and the penalty is positive."""
    for name, matrix in {"gradient": gradient_CE, "penalty": penalty_CE}.items():
        if matrix.shape != curvature.shape:
            raise InputError(
                f"natural gradient: the {name} must be {list(curvature.shape)} as the head is, "
                f"got {list(matrix.shape)}"
            )
    if not torch.isfinite(gradient_CE).all():
        raise InputError(
            "natural gradient: the gradient is not finite, an earlier step went too far; raise "
            "the damping or lower the learning rate"
        )
    lowest = penalty_CE.min().item()
    if not (lowest > 0 and torch.isfinite(penalty_CE).all()):
        raise InputError(
            "natural gradient: damping plus anchor must be positive and finite for every "
            f"parameter, the least is {lowest:g}; raise the damping"
        )


def singular(method: str, penalty_CE: Tensor) -> InputError:
    """The error of a system that a method cannot solve in this precision."""
    precision = str(penalty_CE.dtype).removeprefix("torch.")
    return InputError(
        f"natural gradient ({method}): curvature plus damping is singular in {precision}, the "
        f"least damping is {penalty_CE.min().item():g}; raise the damping"
    )


def checked(
    method: str, curvature: Curvature, v_CE: Tensor, gradient_CE: Tensor, penalty_CE: Tensor
) -> Tensor:
    """`v_CE` if it solves the system, else `InputError`.

    A factorisation of a nearly singular matrix may succeed and answer with rounding noise: the
    residual tells. It must stay below 6e-6 of the gradient in float64, 5e-3 in float32.
    """
    rest_CE = gradient_CE - curvature.product(v_CE) - penalty_CE * v_CE
    limit = torch.finfo(v_CE.dtype).eps ** (1 / 3)
    if not rest_CE.norm() <= limit * gradient_CE.norm():  # NaN fails too
        raise singular(method, penalty_CE)
    return v_CE


def constant(penalty_CE: Tensor) -> bool:
    """Whether all entries are one number."""
    return bool(penalty_CE.min() == penalty_CE.max())
