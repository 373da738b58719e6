"""EKFAC: exact second moments in K-FAC's eigenbasis, hence at least as close as K-FAC."""

import torch
from _heads import curvatures
from hypothesis import given, settings
from hypothesis import strategies as st

from ngf.fisher.ekfac import Ekfac
from ngf.fisher.kfac import Kfac


@given(st.integers(1, 20), st.integers(1, 5), st.integers(2, 5), st.integers(0, 2**31))
@settings(deadline=None, max_examples=25)
def test_its_spectrum_is_the_diagonal_of_the_projected_fisher(n, d, c, seed):
    for curvature in curvatures(n=n, d=d, c=c, seed=seed):
        ekfac, kfac = Ekfac(curvature), Kfac(curvature).eigenbasis
        q = torch.kron(kfac.outputs_CC, kfac.inputs_EE)
        expected = (q.T @ curvature.dense() @ q).diagonal()
        torch.testing.assert_close(ekfac.eigenbasis.spectrum_CE.flatten(), expected)
        torch.testing.assert_close(ekfac.dense(), (q * expected) @ q.T)


@given(st.integers(1, 20), st.integers(1, 5), st.integers(2, 5), st.integers(0, 2**31))
@settings(deadline=None, max_examples=25)
def test_it_is_at_least_as_close_as_kfac(n, d, c, seed):
    for curvature in curvatures(n=n, d=d, c=c, seed=seed):
        matrix = curvature.dense()
        ekfac = (Ekfac(curvature).dense() - matrix).norm()
        assert ekfac <= (Kfac(curvature).dense() - matrix).norm() + 1e-12 * matrix.norm()


def test_it_is_closer_where_features_and_outputs_depend_on_each_other():
    for curvature in curvatures(n=30, d=5, c=4, sure=3.0):
        matrix = curvature.dense()
        ekfac = (Ekfac(curvature).dense() - matrix).norm()
        assert ekfac < 0.99 * (Kfac(curvature).dense() - matrix).norm()


def test_moments_in_other_coordinates_than_the_products_would_be_another_matrix():
    """What NGF's released code does: moments of Q g Q^T for products with Q^T g Q."""
    fisher = curvatures(n=30, d=5, c=4)[1]
    basis = Ekfac(fisher).eigenbasis
    outputs_NC = fisher.residual_NC @ basis.outputs_CC.T
    inputs_NE = fisher.features_NE @ basis.inputs_EE.T
    released_CE = outputs_NC.square().T @ inputs_NE.square() / 30
    assert (released_CE - basis.spectrum_CE).norm() > 0.1 * basis.spectrum_CE.norm()
