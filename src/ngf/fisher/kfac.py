"""K-FAC of a linear head: one Kronecker product in place of a mean of Kronecker products."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ngf.fisher.curvature import Samples, check_dense
from ngf.fisher.eigenbasis import Eigenbasis, eigenvectors


class Kfac:
    """F ≈ B ⊗ A (Martens & Grosse 2015, arXiv 1503.05671).

    A [E, E] = mean of h h^T. B [C, C] = mean of diag(p) - p p^T for the true Fisher, of r r^T for
    the empirical one. It takes features for independent of output factors; with one sample, or
    equal factors, it is exact.
    """

    def __init__(self, curvature: Samples) -> None:
        features_NE = curvature.features_NE
        self.inputs_EE = features_NE.T @ features_NE / len(features_NE)
        self.outputs_CC = curvature.output_factor()

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.outputs_CC), len(self.inputs_EE)

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs_EE.dtype

    @property
    def device(self) -> torch.device:
        return self.inputs_EE.device

    @cached_property
    def eigenbasis(self) -> Eigenbasis:
        """The eigenvalues of a Kronecker product are the products of its factors' eigenvalues."""
        outputs_C, vectors_CC = eigenvectors(self.outputs_CC)
        inputs_E, vectors_EE = eigenvectors(self.inputs_EE)
        return Eigenbasis(vectors_CC, vectors_EE, torch.outer(outputs_C, inputs_E))

    def product(self, v_CE: Tensor) -> Tensor:
        return self.outputs_CC @ v_CE @ self.inputs_EE

    def diagonal(self) -> Tensor:
        return torch.outer(self.outputs_CC.diagonal(), self.inputs_EE.diagonal())

    def dense(self) -> Tensor:
        check_dense(self.shape)
        return torch.kron(self.outputs_CC, self.inputs_EE)
