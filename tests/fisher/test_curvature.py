"""What all curvatures promise: products, diagonals and dense matrices say the same."""

import pytest
import torch
from _heads import curvatures

from ngf.errors import InputError
from ngf.fisher.curvature import with_bias
from ngf.fisher.diagonal_head import DiagonalFisher
from ngf.fisher.ekfac import Ekfac
from ngf.fisher.empirical import EmpiricalFisher
from ngf.fisher.kfac import Kfac
from ngf.fisher.true import TrueFisher


def all_curvatures(**shape):
    for samples in curvatures(**shape):
        yield from (samples, Kfac(samples), Ekfac(samples), DiagonalFisher(samples))


@pytest.mark.parametrize("shape", [(7, 3, 4), (1, 1, 2), (30, 6, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_product_and_diagonal_equal_the_dense_matrix(shape, bias):
    n, d, c = shape
    for curvature in all_curvatures(n=n, d=d, c=c, bias=bias):
        matrix = curvature.dense()
        v_CE = torch.randn(curvature.shape, dtype=torch.float64)
        assert curvature.shape == (c, d + bias)
        assert matrix.shape == (c * (d + bias), c * (d + bias))
        assert (curvature.dtype, curvature.device.type) == (torch.float64, "cpu")
        torch.testing.assert_close(curvature.product(v_CE).flatten(), matrix @ v_CE.flatten())
        torch.testing.assert_close(curvature.diagonal().flatten(), matrix.diagonal())
        torch.testing.assert_close(matrix, matrix.T)
        assert torch.linalg.eigvalsh(matrix).min() > -1e-12 * matrix.norm()


def test_dense_goes_by_chunks_of_samples(monkeypatch):
    whole = [curvature.dense() for curvature in curvatures(n=11)]
    monkeypatch.setattr("ngf.fisher.pairs.CHUNK", 50)  # two samples at a time
    for curvature, expected in zip(curvatures(n=11), whole, strict=True):
        torch.testing.assert_close(curvature.dense(), expected)


def test_a_column_of_ones_stands_last_where_there_is_a_bias():
    h_ND = torch.arange(6.0).view(2, 3)
    assert with_bias(h_ND, True).tolist() == [[0, 1, 2, 1], [3, 4, 5, 1]]
    assert with_bias(h_ND, False) is h_ND


def test_a_matrix_too_large_is_refused_with_size_limit_and_remedy(monkeypatch):
    monkeypatch.setattr("ngf.fisher.curvature.DENSE_LIMIT", 14)
    for curvature in all_curvatures(n=6, d=4, c=3):
        message = r"^curvature: 15 parameters .* limit is 14; use product\(\) or .*solve\(\)"
        with pytest.raises(InputError, match=message):
            curvature.dense()
    monkeypatch.setattr("ngf.fisher.curvature.DENSE_LIMIT", 15)
    assert all(c.dense().shape == (15, 15) for c in all_curvatures(n=6, d=4, c=3))


@pytest.mark.parametrize(
    ("features", "outputs", "message"),
    [
        (torch.ones(3, 2), torch.ones(2, 2), r"\[3, 2\] and \[2, 2\]"),
        (torch.ones(0, 2), torch.ones(0, 2), "no samples"),
        (torch.full((3, 2), torch.inf), torch.ones(3, 2), "not finite"),
        (torch.ones(3, 2), torch.full((3, 2), torch.nan), "not finite"),
    ],
)
def test_bad_samples_are_named(features, outputs, message):
    with pytest.raises(InputError, match=message):
        TrueFisher(features, outputs)
    with pytest.raises(InputError, match=message):
        EmpiricalFisher(features, outputs, torch.zeros(len(features)).long())
