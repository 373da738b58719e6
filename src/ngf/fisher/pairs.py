"""Dense matrices of small heads: the mean over samples of M_n ⊗ h_n h_n^T."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 2**24  # entries of the largest temporary

# (samples, classes i [P], classes k [P]) -> entries (i, k) of those samples' M_n: [samples, P]
Entries = Callable[[slice, Tensor, Tensor], Tensor]


def mean_of_kronecker(features_NE: Tensor, classes: int, entries: Entries) -> Tensor:
    """[C E, C E]: one matrix product between the upper triangles of all M_n and all h_n h_n^T.

    Both factors are symmetric, so a quarter of the entries says everything. Chunks of samples keep
    the triangles, which are quadratic in C and in E, below `CHUNK` entries.
    """
    n, inputs = features_NE.shape
    i_P, k_P = torch.triu_indices(classes, classes, device=features_NE.device)
    e_Q, f_Q = torch.triu_indices(inputs, inputs, device=features_NE.device)
    total_PQ = features_NE.new_zeros(len(i_P), len(e_Q))
    rows = max(1, CHUNK // (len(i_P) + len(e_Q)))
    for start in range(0, n, rows):
        some = slice(start, start + rows)
        products_NQ = features_NE[some, e_Q] * features_NE[some, f_Q]
        total_PQ.addmm_(entries(some, i_P, k_P).T, products_NQ)
    full_CCEE = total_PQ[_places(classes, i_P, k_P)][:, :, _places(inputs, e_Q, f_Q)]
    return full_CCEE.transpose(1, 2).reshape(classes * inputs, classes * inputs) / n


def _places(size: int, i_P: Tensor, k_P: Tensor) -> Tensor:
    """Where entry (i, k) of a symmetric matrix stands in its upper triangle: [size, size]."""
    place = i_P.new_zeros(size, size)
    order_P = torch.arange(len(i_P), device=i_P.device)
    place[i_P, k_P] = order_P
    place[k_P, i_P] = order_P
    return place
