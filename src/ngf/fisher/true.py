"""The true Fisher of a linear head, exact over labels and without a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ngf.fisher.samples import MeanOverSamples


class TrueFisher(MeanOverSamples):
    """F = mean_n (diag(p_n) - p_n p_n^T) ⊗ h_n h_n^T (Amari 1998); labels are never used.

    For softmax with cross-entropy it equals the Gauss-Newton matrix and the Hessian.

    Args:
        features_NE: the head's inputs, with a column of ones where it has a bias.
        probabilities_NC: the model's predictions.
    """

    def __init__(self, features_NE: Tensor, probabilities_NC: Tensor) -> None:
        super().__init__(features_NE, probabilities_NC)
        self.probabilities_NC = probabilities_NC

    def product(self, v_CE: Tensor) -> Tensor:
        """Two matrix products: 4 n C E operations and temporaries of [N, C]."""
        p_NC = self.probabilities_NC
        change_NC = self.features_NE @ v_CE.T  # of the logits along v
        mean_N1 = torch.linalg.vecdot(p_NC, change_NC).unsqueeze(1)
        return change_NC.sub_(mean_N1).mul_(p_NC).T @ self.features_NE / len(p_NC)

    def output_factor(self) -> Tensor:
        p_NC = self.probabilities_NC
        return torch.diag(p_NC.mean(0)) - p_NC.T @ p_NC / len(p_NC)

    def output_moments(self, basis_CC: Tensor) -> Tensor:
        """The variance of q_c under each prediction: never negative but for rounding."""
        p_NC = self.probabilities_NC
        return (p_NC @ basis_CC.square() - (p_NC @ basis_CC).square()).clamp_min_(0)

    def output_diagonal(self) -> Tensor:
        return self.probabilities_NC * (1 - self.probabilities_NC)

    def compress(self, t_NCR: Tensor) -> Tensor:
        n, classes, each = t_NCR.shape
        weighted_NCR = self.probabilities_NC[:, :, None] * t_NCR
        flat_NP = weighted_NCR.flatten(1)
        result = flat_NP.T @ flat_NP / -n
        within_CRR = weighted_NCR.permute(1, 2, 0) @ t_NCR.permute(1, 0, 2) / n
        result.view(classes, each, classes, each).diagonal(dim1=0, dim2=2).add_(
            within_CRR.permute(1, 2, 0)
        )
        return result

    def _entries(self, some: slice, i_P: Tensor, k_P: Tensor) -> Tensor:
        p_NC = self.probabilities_NC[some]
        return p_NC[:, i_P] * ((i_P == k_P).to(p_NC.dtype) - p_NC[:, k_P])
