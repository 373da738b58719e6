"""A symmetric matrix on [C, E] that is diagonal between two small orthogonal bases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ngf.errors import InputError


@dataclass(frozen=True)
class Eigenbasis:
    """(Q_B ⊗ Q_A) diag(spectrum) (Q_B ⊗ Q_A)^T.

    Args:
        outputs_CC, inputs_EE: Q_B and Q_A, eigenvectors in columns.
        spectrum_CE: one non-negative value for each pair of eigenvectors.
    """

    outputs_CC: Tensor
    inputs_EE: Tensor
    spectrum_CE: Tensor

    def scaled(self, v_CE: Tensor, by_CE: Tensor) -> Tensor:
        """Q_B (by ∘ (Q_B^T v Q_A)) Q_A^T: project, scale each coordinate, project back."""
        inside_CE = by_CE * (self.outputs_CC.T @ v_CE @ self.inputs_EE)
        return self.outputs_CC @ inside_CE @ self.inputs_EE.T

    def product(self, v_CE: Tensor) -> Tensor:
        return self.scaled(v_CE, self.spectrum_CE)

    def solve(self, gradient_CE: Tensor, penalty: float) -> Tensor:
        """v of (matrix + penalty I) v = gradient."""
        return self.scaled(gradient_CE, 1 / (self.spectrum_CE + penalty))


def eigenvectors(factor: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvalues, eigenvectors in columns) of a positive semi-definite factor."""
    try:
        values, vectors = torch.linalg.eigh(factor)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise InputError(
            f"K-FAC: a factor [{len(factor)}, {len(factor)}] has no eigenvectors in "
            f"{factor.dtype}: scale the features or use float64"
        ) from error
    return values.clamp_min(0), vectors
