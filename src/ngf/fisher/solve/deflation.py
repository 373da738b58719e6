"""A preconditioner that solves exactly where a head's curvature is largest.

Scaled by the diagonal, the curvature of one class has a few large eigenvalues: features are
positive, so all samples that are unsure of the class pull along their mean. A thousand classes have
thousands of such eigenvalues, and conjugate gradients would have to find each. Here a few Lanczos
steps find them for all classes at once (one product a step); the system within the directions
found, with all that passes between classes, goes to a Cholesky factor; the diagonal serves for the
rest:

    M^-1 = S (Z (Z^T S (F + D) S Z)^-1 Z^T + I - Z Z^T) S,     S = (diag(F) + D)^-1/2.

Z has R orthonormal directions a class. Measured on a sure head (`benchmarks.imagenet_head`), it
needs a third of the diagonal's iterations. EKFAC's eigenbasis needs more than the diagonal there: a
sure head has curvature in few places, EKFAC spreads it over all, and where it claims too much the
steps become short.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ngf.fisher.curvature import Samples
from ngf.fisher.solve.checks import singular

DIRECTIONS = 8  # a class
LIMIT = 4_000  # directions of all classes together
EXTRA = 4  # steps of Lanczos beyond the directions that are kept
LOST = 1e-5  # a Lanczos vector this much shorter than its image is rounding


class Deflated:
    """About (F + diag(penalty))^-1, a callable on [C, E]."""

    def __init__(self, curvature: Samples, diagonal_CE: Tensor, penalty_CE: Tensor) -> None:
        self._scale_CE = (diagonal_CE + penalty_CE).rsqrt()
        self._z_CRE = _leading(curvature, self._scale_CE)
        scaled_CRE = self._z_CRE * self._scale_CE[:, None]
        classes, directions = self._z_CRE.shape[:2]
        t_NCR = (curvature.features_NE @ scaled_CRE.flatten(0, 1).T).view(-1, classes, directions)
        matrix = curvature.compress(t_NCR)
        held_CRR = (scaled_CRE * penalty_CE[:, None]) @ scaled_CRE.mT
        # A class with fewer directions than the others has zeros in Z: they stand for nothing.
        held_CRR.diagonal(dim1=1, dim2=2).add_((1 - self._z_CRE.square().sum(2)).clamp_min(0))
        own = matrix.view(classes, directions, classes, directions).diagonal(dim1=0, dim2=2)
        own.add_(held_CRR.permute(1, 2, 0))
        self._factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            raise singular("conjugate", penalty_CE)

    def __call__(self, gradient_CE: Tensor) -> Tensor:
        x_CE = gradient_CE * self._scale_CE
        along_CR = (self._z_CRE @ x_CE[:, :, None]).squeeze(2)
        solved_CR = torch.cholesky_solve(along_CR.view(-1, 1), self._factor).view_as(along_CR)
        x_CE += ((solved_CR - along_CR)[:, None] @ self._z_CRE).squeeze(1)
        return x_CE.mul_(self._scale_CE)


def _leading(curvature: Samples, scale_CE: Tensor) -> Tensor:
    """Leading eigenvectors of every class's own block of S F S, about: [C, R, E]."""
    h_NE, weight_NC = curvature.features_NE, curvature.output_diagonal()
    classes, inputs = scale_CE.shape
    directions = min(DIRECTIONS, max(1, LIMIT // classes), inputs)

    def blocks(x_CE: Tensor) -> Tensor:
        """Each class's block times its own vector."""
        t_NC = h_NE @ (scale_CE * x_CE).T
        return scale_CE * (t_NC.mul_(weight_NC).T @ h_NE) / len(h_NE)

    x_CE = scale_CE * (weight_NC.T @ h_NE)  # along the mean feature
    basis, images = [_unit(x_CE, x_CE)], list[Tensor]()
    for step in range(min(directions + EXTRA, inputs)):
        images.append(blocks(basis[step]))
        x_CE = images[step]
        for _ in range(2):  # twice is enough against rounding
            for b_CE in basis:
                x_CE = x_CE - (b_CE * x_CE).sum(1, keepdim=True) * b_CE
        basis.append(_unit(x_CE, images[step]))
    q_CSE = torch.stack(basis[:-1], 1)
    ritz_CSS = q_CSE @ torch.stack(images, 1).mT
    vectors_CSS = torch.linalg.eigh((ritz_CSS + ritz_CSS.mT) / 2)[1]
    return vectors_CSS[:, :, -directions:].mT @ q_CSE


def _unit(x_CE: Tensor, before_CE: Tensor) -> Tensor:
    """Rows of length 1, or of zeros where nothing but rounding is left of the row before."""
    norm_C1, before_C1 = x_CE.norm(dim=1, keepdim=True), before_CE.norm(dim=1, keepdim=True)
    kept_C1 = norm_C1 > LOST * before_C1
    return torch.where(kept_C1, x_CE / norm_C1, 0)
