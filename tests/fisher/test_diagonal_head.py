"""The diagonal approximation keeps the diagonal and nothing else."""

import torch
from _heads import curvatures

from ngf.fisher.diagonal_head import DiagonalFisher


def test_it_is_the_diagonal_of_any_curvature():
    for curvature in curvatures():
        expected = torch.diag(curvature.dense().diagonal())
        torch.testing.assert_close(DiagonalFisher(curvature).dense(), expected)
        assert not torch.allclose(curvature.dense(), expected)
