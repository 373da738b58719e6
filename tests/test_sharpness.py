"""The largest eigenvalue against the dense Hessian, in float64."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy

from ngf.curvature import sharpness


def network() -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    )
    return net.double().eval()


def dense(net, x_NCHW, y_N) -> torch.Tensor:
    names = [name for name, _ in net.named_parameters()]
    sizes = [p.numel() for p in net.parameters()]
    shapes = [p.shape for p in net.parameters()]

    def loss(flat):
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        return cross_entropy(
            functional_call(net, dict(zip(names, parts, strict=True)), x_NCHW), y_N
        )

    return hessian(loss)(torch.cat([p.detach().flatten() for p in net.parameters()]))


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_eigenvalue_of_the_dense_hessian(seed):
    net = network()
    generator = torch.Generator().manual_seed(seed)
    x_NCHW = torch.randn(12, 1, 4, 4, generator=generator, dtype=torch.float64)
    y_N = torch.randint(3, (12,), generator=generator)
    values = torch.linalg.eigvalsh(dense(net, x_NCHW, y_N))
    largest = values[values.abs().argmax()].item()
    assert sharpness(net, x_NCHW, y_N, iterations=200) == pytest.approx(largest, rel=1e-6)
    assert sharpness(net, x_NCHW, y_N, iterations=200, seed=5) == pytest.approx(largest, rel=1e-6)
    assert all(p.grad is None for p in net.parameters())
