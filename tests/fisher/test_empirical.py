"""The empirical Fisher against its definition and against the outer products of its gradients."""

import pytest
import torch
from _heads import curvatures, empirical_by_definition, random_head
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from ngf.errors import InputError
from ngf.fisher.empirical import EmpiricalFisher


@given(st.integers(1, 6), st.integers(1, 4), st.integers(2, 4), st.booleans(), st.integers(0, 999))
@settings(deadline=None, max_examples=15)
def test_it_is_the_mean_of_squared_gradients(n, d, c, bias, seed):
    h_NE, w_CE, y_N = random_head(n, d, c, seed, bias)
    fisher = EmpiricalFisher(h_NE, (h_NE @ w_CE.T).softmax(1), y_N)
    torch.testing.assert_close(fisher.dense(), empirical_by_definition(h_NE, w_CE, y_N))


def test_it_exposes_the_factors_of_its_gradients():
    h_NE, w_CE, y_N = random_head(c=4)
    p_NC = (h_NE @ w_CE.T).softmax(1)
    fisher = EmpiricalFisher(h_NE, p_NC, y_N)
    torch.testing.assert_close(fisher.residual_NC, p_NC - one_hot(y_N, 4))
    j_NP = torch.einsum("nc,ne->nce", fisher.residual_NC, fisher.features_NE).flatten(1)
    torch.testing.assert_close(fisher.dense(), j_NP.T @ j_NP / len(j_NP))


def test_labels_matter_to_it_and_not_to_the_true_fisher():
    h_NE, w_CE, y_N = random_head()
    p_NC = (h_NE @ w_CE.T).softmax(1)
    one, other = (EmpiricalFisher(h_NE, p_NC, labels) for labels in (y_N, (y_N + 1) % 3))
    assert not torch.allclose(one.dense(), other.dense())


def test_output_moments_are_squared_projections():
    fisher = curvatures(n=5, c=4)[1]
    q_CC = torch.randn(4, 4, dtype=torch.float64)
    m_NCC = fisher.residual_NC[:, :, None] * fisher.residual_NC[:, None, :]
    expected = (q_CC.T @ m_NCC @ q_CC).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(fisher.output_moments(q_CC), expected)
    torch.testing.assert_close(fisher.output_factor(), m_NCC.mean(0))


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 3], [0, -1, 2]])
def test_labels_of_another_count_or_class_are_refused(labels):
    with pytest.raises(InputError, match=r"one label in \[0, 3\) for each of 3 samples"):
        EmpiricalFisher(torch.ones(3, 2), torch.full((3, 3), 1 / 3), torch.tensor(labels))


def test_compressed_output_factors_equal_the_factors_one_by_one():
    fisher = curvatures(n=5, c=4)[1]
    eye_CC = torch.eye(4, dtype=torch.float64)
    t_NCR = torch.randn(5, 4, 2, dtype=torch.float64)
    m_NCC = fisher.residual_NC[:, :, None] * fisher.residual_NC[:, None, :]
    expected = torch.einsum("nck,ncr,nks->crks", m_NCC, t_NCR, t_NCR).reshape(8, 8) / 5
    torch.testing.assert_close(fisher.compress(t_NCR), expected)
    torch.testing.assert_close(fisher.output_diagonal(), m_NCC.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(fisher.output_diagonal(), fisher.output_moments(eye_CC))
