"""What the true and the empirical Fisher share: a mean over samples of M_n ⊗ h_n h_n^T."""

from __future__ import annotations

import torch
from torch import Tensor

from ngf.fisher.curvature import check_dense, check_samples
from ngf.fisher.pairs import mean_of_kronecker


class MeanOverSamples:
    """The size, diagonal and dense form of a curvature, from its features and its M_n.

    Args:
        features_NE: the head's inputs, with a column of ones where it has a bias.
        outputs_NC: finite numbers, C for each sample.
    """

    def __init__(self, features_NE: Tensor, outputs_NC: Tensor) -> None:
        check_samples(features_NE, outputs_NC)
        self.features_NE = features_NE
        self._classes = outputs_NC.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self._classes, self.features_NE.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.features_NE.dtype

    @property
    def device(self) -> torch.device:
        return self.features_NE.device

    def diagonal(self) -> Tensor:
        return self.output_diagonal().T @ self.features_NE.square() / len(self.features_NE)

    def dense(self) -> Tensor:
        check_dense(self.shape)
        return mean_of_kronecker(self.features_NE, self._classes, self._entries)

    def output_diagonal(self) -> Tensor:
        """The diagonal of every M_n: [N, C]."""
        raise NotImplementedError

    def _entries(self, some: slice, i_P: Tensor, k_P: Tensor) -> Tensor:
        """Entries (i, k) of some samples' M_n: [samples, P]."""
        raise NotImplementedError
