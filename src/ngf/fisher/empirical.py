"""The empirical Fisher of a linear head: second moments of the gradients of given labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot

from ngf.errors import InputError
from ngf.fisher.samples import MeanOverSamples


class EmpiricalFisher(MeanOverSamples):
    """F = mean_n vec(r_n h_n^T) vec(r_n h_n^T)^T with r = p - onehot(y).

    It is the Fisher only where the labels are drawn from the model (Kunstner et al. 2019, arXiv
    1905.12558); with the data's labels it vanishes wherever the model fits them.

    Args:
        features_NE: the head's inputs, with a column of ones where it has a bias.
        probabilities_NC: the model's predictions.
        labels_N: int64, each in [0, C).
    """

    def __init__(self, features_NE: Tensor, probabilities_NC: Tensor, labels_N: Tensor) -> None:
        super().__init__(features_NE, probabilities_NC)
        classes = probabilities_NC.shape[1]
        if labels_N.shape != (len(features_NE),) or labels_N.min() < 0 or labels_N.max() >= classes:
            raise InputError(
                f"empirical Fisher: one label in [0, {classes}) for each of {len(features_NE)} "
                f"samples is needed, got {list(labels_N.shape)}"
            )
        self.residual_NC = probabilities_NC - one_hot(labels_N, classes)

    def product(self, v_CE: Tensor) -> Tensor:
        """Two matrix products: 4 n C E operations and temporaries of [N, C]."""
        slope_N1 = ((self.features_NE @ v_CE.T) * self.residual_NC).sum(1, keepdim=True)
        return (slope_N1 * self.residual_NC).T @ self.features_NE / len(slope_N1)

    def output_factor(self) -> Tensor:
        return self.residual_NC.T @ self.residual_NC / len(self.residual_NC)

    def output_moments(self, basis_CC: Tensor) -> Tensor:
        return (self.residual_NC @ basis_CC).square()

    def output_diagonal(self) -> Tensor:
        return self.residual_NC.square()

    def compress(self, t_NCR: Tensor) -> Tensor:
        flat_NP = (self.residual_NC[:, :, None] * t_NCR).flatten(1)
        return flat_NP.T @ flat_NP / len(flat_NP)

    def _entries(self, some: slice, i_P: Tensor, k_P: Tensor) -> Tensor:
        return self.residual_NC[some, i_P] * self.residual_NC[some, k_P]
