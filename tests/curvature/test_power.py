"""The largest eigenvalue against the dense Hessian, in float64."""

import pytest
import torch
from _network import dense_hessian, images, network

from ngf.curvature.power import sharpness


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_eigenvalue_of_the_dense_hessian(seed):
    net = network()
    x_NCHW, y_N = images(seed=seed)
    values = torch.linalg.eigvalsh(dense_hessian(net, x_NCHW, y_N))
    largest = values[values.abs().argmax()].item()
    assert sharpness(net, x_NCHW, y_N, iterations=200) == pytest.approx(largest, rel=1e-6)
    assert sharpness(net, x_NCHW, y_N, iterations=200, seed=5) == pytest.approx(largest, rel=1e-6)
    assert all(p.grad is None for p in net.parameters())
