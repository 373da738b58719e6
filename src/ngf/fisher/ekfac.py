"""EKFAC of a linear head: K-FAC's eigenvectors with the exact second moments along them."""

from __future__ import annotations

import torch
from torch import Tensor

from ngf.fisher.curvature import Samples, check_dense
from ngf.fisher.eigenbasis import Eigenbasis
from ngf.fisher.kfac import Kfac


class Ekfac:
    """F ≈ Q diag(s) Q^T, Q = Q_B ⊗ Q_A of K-FAC (George et al. 2018, arXiv 1806.03884).

    s is the diagonal of Q^T F Q: mean_n (Q_B^T M_n Q_B)_cc (h_n^T Q_A)_e^2, with the exact
    expectation over labels where F is the true Fisher. No other diagonal in this basis is closer
    to F in Frobenius norm, K-FAC's own eigenvalues included.

    One projection, Q_B^T g Q_A, serves for moments, products and solves alike. NGF's released code
    measures the moments of Q_B g Q_A^T and preconditions Q_B^T g Q_A (see
    `ngf.defenses._released_ekfac`): those moments belong to other coordinates than they rescale.
    """

    def __init__(self, curvature: Samples) -> None:
        basis = Kfac(curvature).eigenbasis
        outputs_NC = curvature.output_moments(basis.outputs_CC)
        inputs_NE = (curvature.features_NE @ basis.inputs_EE).square_()
        moments_CE = outputs_NC.T @ inputs_NE / len(inputs_NE)
        self.eigenbasis = Eigenbasis(basis.outputs_CC, basis.inputs_EE, moments_CE)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.eigenbasis.outputs_CC), len(self.eigenbasis.inputs_EE)

    @property
    def dtype(self) -> torch.dtype:
        return self.eigenbasis.spectrum_CE.dtype

    @property
    def device(self) -> torch.device:
        return self.eigenbasis.spectrum_CE.device

    def product(self, v_CE: Tensor) -> Tensor:
        return self.eigenbasis.product(v_CE)

    def diagonal(self) -> Tensor:
        basis = self.eigenbasis
        return basis.outputs_CC.square() @ basis.spectrum_CE @ basis.inputs_EE.square().T

    def dense(self) -> Tensor:
        check_dense(self.shape)
        basis = self.eigenbasis
        vectors = torch.kron(basis.outputs_CC, basis.inputs_EE)
        return (vectors * basis.spectrum_CE.flatten()) @ vectors.T
