"""The deflated preconditioner: symmetric, positive, and exact where its directions span all."""

import pytest
import torch
from _heads import assert_equal, curvatures, matrix_solution, system
from hypothesis import given, settings
from hypothesis import strategies as st

from ngf.fisher.solve import deflation
from ngf.fisher.solve.deflation import Deflated


def matrix_of(inverse, shape):
    columns = torch.eye(shape[0] * shape[1], dtype=torch.float64).view(-1, *shape)
    return torch.stack([inverse(column).flatten() for column in columns], 1)


@given(st.integers(1, 20), st.integers(1, 12), st.integers(2, 5), st.integers(0, 2**31))
@settings(deadline=None, max_examples=25)
def test_it_is_symmetric_and_positive_even_for_fewer_samples_than_directions(n, d, c, seed):
    for curvature in curvatures(n=n, d=d, c=c, seed=seed):
        _, penalty_CE = system(curvature, 0.3, 1e-3)
        inverse = matrix_of(Deflated(curvature, curvature.diagonal(), penalty_CE), curvature.shape)
        torch.testing.assert_close(inverse, inverse.T)
        assert torch.linalg.eigvalsh(inverse).min() > 0


def test_it_is_exact_where_the_directions_span_everything():
    for curvature in curvatures(n=40, d=5, c=4):
        g_CE, penalty_CE = system(curvature, 0.3, 1e-3)
        inverse = Deflated(curvature, curvature.diagonal(), penalty_CE)
        assert_equal(inverse(g_CE), matrix_solution(curvature, g_CE, penalty_CE))


def test_it_is_exact_within_its_directions(monkeypatch):
    """Z^T S^-1 M^-1 S^-1 Z is the inverse of the system within Z, coupling between classes too."""
    monkeypatch.setattr(deflation, "DIRECTIONS", 2)
    for curvature in curvatures(n=40, d=9, c=4):
        _, penalty_CE = system(curvature, 0.3, 1e-3)
        deflated = Deflated(curvature, curvature.diagonal(), penalty_CE)
        inverse = matrix_of(deflated, curvature.shape)
        scale_P, z_PR = deflated._scale_CE.flatten(), torch.block_diag(*deflated._z_CRE.mT)
        torch.testing.assert_close(z_PR.T @ z_PR, torch.eye(8, dtype=torch.float64))
        system_PP = curvature.dense() + torch.diag(penalty_CE.flatten())
        within = z_PR.T @ (scale_P[:, None] * system_PP * scale_P) @ z_PR
        got = z_PR.T @ (inverse / scale_P[:, None] / scale_P) @ z_PR
        torch.testing.assert_close(got, torch.linalg.inv(within))


def test_its_directions_are_the_leading_ones_of_each_class(monkeypatch):
    monkeypatch.setattr(deflation, "DIRECTIONS", 1)
    monkeypatch.setattr(deflation, "EXTRA", 9)
    true = curvatures(n=60, d=9, c=3)[0]
    _, penalty_CE = system(true, 0.3, 1e-3)
    deflated = Deflated(true, true.diagonal(), penalty_CE)
    blocks = true.dense().view(3, 10, 3, 10)
    for c in range(3):
        scale_E = deflated._scale_CE[c]
        leading = torch.linalg.eigh(scale_E[:, None] * blocks[c, :, c] * scale_E)[1][:, -1]
        assert abs(leading @ deflated._z_CRE[c, 0]) == pytest.approx(1, abs=1e-6)


def test_the_limit_holds_for_all_classes_together(monkeypatch):
    monkeypatch.setattr(deflation, "LIMIT", 12)
    true = curvatures(n=30, d=9, c=4)[0]
    for limit, directions in ((12, 3), (3, 1), (1000, 8)):
        monkeypatch.setattr(deflation, "LIMIT", limit)
        deflated = Deflated(true, true.diagonal(), torch.ones(4, 10, dtype=torch.float64))
        assert deflated._z_CRE.shape == (4, directions, 10)
