"""What every curvature of a linear head offers, and the features that all of them start from.

A head with C classes and E inputs has one matrix of parameters W_CE (E counts the bias, if any);
predictions are p_NC = softmax(H W^T) with features H_NE. Every gradient and every step is such a
matrix too, and vec() reads it row by row: entry (c, e) stands at place c E + e. A curvature is a
symmetric positive semi-definite matrix [C E, C E] on those vectors.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ngf.errors import InputError

DENSE_LIMIT = 20_000  # parameters: a matrix of 3.2 GB in float64


class Curvature(Protocol):
    """A curvature that is known by its products."""

    @property
    def shape(self) -> tuple[int, int]:
        """(C, E)."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def product(self, v_CE: Tensor) -> Tensor:
        """Curvature times vec(v), as [C, E]."""
        ...

    def diagonal(self) -> Tensor:
        """[C, E]."""
        ...

    def dense(self) -> Tensor:
        """[C E, C E]: for small heads and for tests. `InputError` above `DENSE_LIMIT`."""
        ...


class Samples(Protocol):
    """What makes a curvature the mean over n samples of M_n ⊗ h_n h_n^T, M_n [C, C]."""

    @property
    def features_NE(self) -> Tensor: ...

    def output_factor(self) -> Tensor:
        """Mean of M_n: [C, C]."""
        ...

    def output_moments(self, basis_CC: Tensor) -> Tensor:
        """q_c^T M_n q_c for every sample and every column q_c of the basis: [N, C]."""
        ...

    def output_diagonal(self) -> Tensor:
        """The diagonal of every M_n: [N, C]."""
        ...

    def compress(self, t_NCR: Tensor) -> Tensor:
        """Mean over n of (M_n)_ck t_ncr t_nks, t any R numbers a class: [C R, C R]."""
        ...


def with_bias(features_ND: Tensor, bias: bool) -> Tensor:
    """Features [N, D], or [N, D + 1] with a last column of ones for a head with a bias."""
    if not bias:
        return features_ND
    return torch.cat([features_ND, features_ND.new_ones(len(features_ND), 1)], 1)


def check_samples(features_NE: Tensor, outputs_NC: Tensor) -> None:
    """`InputError` unless both are finite matrices with one row for each of n >= 1 samples."""
    if features_NE.ndim != 2 or outputs_NC.ndim != 2 or len(features_NE) != len(outputs_NC):
        shapes = f"{list(features_NE.shape)} and {list(outputs_NC.shape)}"
        raise InputError(f"curvature: features and outputs must be [n, E] and [n, C], got {shapes}")
    if not len(features_NE):
        raise InputError("curvature: there are no samples")
    if not (torch.isfinite(features_NE).all() and torch.isfinite(outputs_NC).all()):
        raise InputError("curvature: features or predictions are not finite")


def check_dense(shape: tuple[int, int]) -> None:
    """`InputError` where a dense matrix would be too large."""
    size = shape[0] * shape[1]
    if size > DENSE_LIMIT:
        raise InputError(
            f"curvature: {size} parameters are too many for a dense matrix, the limit is "
            f"{DENSE_LIMIT}; use product() or ngf.fisher.solve.solve(), which need none"
        )
