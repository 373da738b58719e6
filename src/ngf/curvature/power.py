"""The largest eigenvalue of the loss's Hessian by power iteration: for any network.

Torch alone, and no functional call of the network: one from elsewhere need not bear it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from ngf.curvature.parameters import trained

NEVER = 1e-30


def sharpness(
    model: nn.Module, x_NCHW: Tensor, y_N: Tensor, *, iterations: int = 20, seed: int = 0
) -> float:
    """The Hessian's eigenvalue of the largest modulus, of the mean cross-entropy on these images.

    Over all trained parameters, in evaluation mode, one Hessian-vector product an iteration. The
    Rayleigh quotient of the last vector: from below, and near after some twenty iterations.
    """
    parameters = list(trained(model).values())
    with sdpa_kernel(SDPBackend.MATH):  # the fast ones have no second derivative
        loss = cross_entropy(model(x_NCHW), y_N)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    generator = torch.Generator(x_NCHW.device).manual_seed(seed)
    vector = _unit(
        [
            torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)
            for p in parameters
        ]
    )
    quotient = torch.zeros(())
    for _ in range(iterations):
        slope = _dot(list(gradients), vector)
        product = torch.autograd.grad(slope, parameters, retain_graph=True, materialize_grads=True)
        quotient = _dot(list(product), vector)
        vector = _unit(list(product))
    return quotient.item()


def _dot(left: list[Tensor], right: list[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def _unit(vector: list[Tensor]) -> list[Tensor]:
    length = _dot(vector, vector).sqrt().clamp_min(NEVER)
    return [part / length for part in vector]
