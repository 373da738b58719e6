"""I-BAU: the hypergradient against its closed form, and an inner maximum that is one."""

import pytest
import torch
from conftest import SIZE, colour_split, tiny_model

from ngf.defenses import ibau


def quadratic(seed: int):
    """inner = d'Ad/2 - d'Bt + c'd, outer = |d - t0|²/2 + t'Mt/2; d*(t) = A^-1 (Bt - c)."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(4, 4, generator=g, dtype=torch.float64)
    a = root @ root.T / 4 + torch.eye(4, dtype=torch.float64)
    b = torch.randn(4, 3, generator=g, dtype=torch.float64)
    c, at = torch.randn(2, 4, generator=g, dtype=torch.float64)
    m = torch.eye(3, dtype=torch.float64)
    theta = torch.randn(3, generator=g, dtype=torch.float64, requires_grad=True)
    best = torch.linalg.solve(a, (b @ theta - c).detach())

    def inner(d):
        return d @ a @ d / 2 - d @ (b @ theta) + c @ d

    def outer(d):
        return (d - at).square().sum() / 2 + theta @ m @ theta / 2

    exact = m @ theta.detach() + b.T @ torch.linalg.solve(a, best - at)
    return inner, outer, best, theta, exact, 1 / torch.linalg.eigvalsh(a).max()


@pytest.mark.parametrize("seed", range(3))
def test_the_series_converges_to_the_implicit_gradient(seed):
    inner, outer, best, theta, exact, rate = quadratic(seed)

    def found(terms):
        return ibau.hypergradient(inner, outer, best, [theta], rate=float(rate), terms=terms)[0]

    torch.testing.assert_close(found(400), exact, rtol=1e-8, atol=1e-10)
    assert (found(20) - exact).norm() < (found(2) - exact).norm()


def test_one_term_is_one_step_of_the_inner_problem():
    """d(theta) = best - rate * slope(theta): its derivative, by autograd, straight through."""
    inner, outer, best, theta, _, rate = quadratic(0)
    d = best.clone().requires_grad_()
    moved = d - rate * torch.autograd.grad(inner(d), d, create_graph=True)[0]
    expected = torch.autograd.grad(outer(moved), theta)[0]
    found = ibau.hypergradient(inner, outer, best, [theta], rate=float(rate), terms=1)[0]
    torch.testing.assert_close(found, expected)


def test_the_perturbation_raises_the_loss_of_all_batches_within_its_radius():
    model = tiny_model()
    split = colour_split(48, seed=5)
    x = torch.tensor(split.x_NHWC).permute(0, 3, 1, 2).float() / 255
    batches = list(zip(x.split(16), torch.tensor(split.y_N).split(16), strict=True))
    d_CHW = ibau.universal(model, batches, lr=10.0, l2=0.001, radius=2.0)
    assert d_CHW.shape == (3, SIZE, SIZE)
    assert 0 < d_CHW.norm() <= 2.0001
    with torch.no_grad():
        before, after = (
            sum(ibau.inner(model, batch, d, 0.0) for batch in batches)
            for d in (torch.zeros_like(d_CHW), d_CHW)
        )
    assert after < before  # inner is the loss's negative
