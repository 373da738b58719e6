"""The true Fisher against its definition and its closed form, in float64."""

import torch
from _heads import curvatures, random_head, true_by_definition
from hypothesis import given, settings
from hypothesis import strategies as st

from ngf.fisher.true import TrueFisher


@given(st.integers(1, 6), st.integers(1, 4), st.integers(2, 4), st.booleans(), st.integers(0, 999))
@settings(deadline=None, max_examples=15)
def test_it_is_the_expectation_over_labels_of_squared_scores(n, d, c, bias, seed):
    h_NE, w_CE, _ = random_head(n, d, c, seed, bias)
    fisher = TrueFisher(h_NE, (h_NE @ w_CE.T).softmax(1))
    torch.testing.assert_close(fisher.dense(), true_by_definition(h_NE, w_CE))


def test_it_is_the_closed_form():
    fisher = curvatures(n=5, d=3, c=4)[0]
    expected = torch.zeros(16, 16, dtype=torch.float64)
    for h_E, p_C in zip(fisher.features_NE, fisher.probabilities_NC, strict=True):
        factor = torch.diag(p_C) - torch.outer(p_C, p_C)
        expected += torch.kron(factor, torch.outer(h_E, h_E)) / 5
    torch.testing.assert_close(fisher.dense(), expected)


def test_the_same_change_of_all_classes_costs_nothing():
    fisher = curvatures()[0]
    v_CE = torch.randn(1, 5, dtype=torch.float64).expand(3, 5)
    assert fisher.product(v_CE).abs().max() < 1e-15
    assert fisher.product(torch.randn(3, 5, dtype=torch.float64)).abs().max() > 1e-3


def test_output_moments_are_the_diagonals_of_the_projected_output_factors():
    fisher = curvatures(n=5, c=4)[0]
    q_CC = torch.randn(4, 4, dtype=torch.float64)
    p_NC = fisher.probabilities_NC
    m_NCC = torch.diag_embed(p_NC) - p_NC[:, :, None] * p_NC[:, None, :]
    expected = (q_CC.T @ m_NCC @ q_CC).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(fisher.output_moments(q_CC), expected)
    torch.testing.assert_close(fisher.output_factor(), m_NCC.mean(0))
    certain = TrueFisher(fisher.features_NE, torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0]])
    assert certain.output_moments(q_CC).min() >= 0


def test_compressed_output_factors_equal_the_factors_one_by_one():
    fisher = curvatures(n=5, c=4)[0]
    eye_CC = torch.eye(4, dtype=torch.float64)
    t_NCR = torch.randn(5, 4, 2, dtype=torch.float64)
    p_NC = fisher.probabilities_NC
    m_NCC = torch.diag_embed(p_NC) - p_NC[:, :, None] * p_NC[:, None, :]
    expected = torch.einsum("nck,ncr,nks->crks", m_NCC, t_NCR, t_NCR).reshape(8, 8) / 5
    torch.testing.assert_close(fisher.compress(t_NCR), expected)
    torch.testing.assert_close(fisher.output_diagonal(), m_NCC.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(fisher.output_diagonal(), fisher.output_moments(eye_CC))
