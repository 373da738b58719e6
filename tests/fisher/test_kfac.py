"""K-FAC: its factors, and where it is exact."""

import torch
from _heads import curvatures

from ngf.fisher.kfac import Kfac


def test_it_is_exact_for_one_sample_and_not_for_many():
    for curvature in curvatures(n=1, d=4, c=3):
        torch.testing.assert_close(Kfac(curvature).dense(), curvature.dense())
    for curvature in curvatures(n=20):
        error = (Kfac(curvature).dense() - curvature.dense()).norm()
        assert error > 1e-3 * curvature.dense().norm()


def test_factors_are_the_mean_of_the_samples_factors():
    true, empirical = curvatures(n=9)
    h_NE, p_NC, r_NC = true.features_NE, true.probabilities_NC, empirical.residual_NC
    a_EE = sum(torch.outer(h, h) for h in h_NE) / 9
    b_true = sum(torch.diag(p) - torch.outer(p, p) for p in p_NC) / 9
    b_empirical = sum(torch.outer(r, r) for r in r_NC) / 9
    torch.testing.assert_close(Kfac(true).dense(), torch.kron(b_true, a_EE))
    torch.testing.assert_close(Kfac(empirical).dense(), torch.kron(b_empirical, a_EE))


def test_its_eigenbasis_is_the_same_matrix():
    for curvature in curvatures():
        kfac = Kfac(curvature)
        basis = kfac.eigenbasis
        q = torch.kron(basis.outputs_CC, basis.inputs_EE)
        torch.testing.assert_close(q.T @ q, torch.eye(15, dtype=torch.float64))
        torch.testing.assert_close((q * basis.spectrum_CE.flatten()) @ q.T, kfac.dense())
        v_CE = torch.randn(3, 5, dtype=torch.float64)
        torch.testing.assert_close(basis.product(v_CE), kfac.product(v_CE))
        assert basis.spectrum_CE.min() >= 0
