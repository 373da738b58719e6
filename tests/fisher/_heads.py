"""Small heads in float64, and every matrix by its definition: sample by sample, label by label."""

import torch
from torch import Tensor
from torch.func import jacrev

from ngf.fisher.curvature import with_bias
from ngf.fisher.empirical import EmpiricalFisher
from ngf.fisher.true import TrueFisher


def random_head(
    n: int = 12, d: int = 4, c: int = 3, seed: int = 0, bias: bool = True, sure: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Features [N, E], weights [C, E] and labels [N]; ReLU-like features of unequal scale."""
    generator = torch.Generator().manual_seed(seed)
    scale_D = torch.logspace(0, -1, d, dtype=torch.float64)
    h_ND = (torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.3).relu() * scale_D
    h_NE = with_bias(h_ND, bias)
    w_CE = sure * torch.randn(c, h_NE.shape[1], generator=generator, dtype=torch.float64)
    return h_NE, w_CE, torch.randint(c, (n,), generator=generator)


def curvatures(**shape) -> tuple[TrueFisher, EmpiricalFisher]:
    h_NE, w_CE, y_N = random_head(**shape)
    p_NC = (h_NE @ w_CE.T).softmax(1)
    return TrueFisher(h_NE, p_NC), EmpiricalFisher(h_NE, p_NC, y_N)


def score_jacobian(h_E: Tensor, w_CE: Tensor) -> Tensor:
    """Gradients of log p(y|h) for every label y, by autograd: [C, C E]."""
    found: Tensor = jacrev(lambda w: (w @ h_E).log_softmax(0))(w_CE)
    return found.flatten(1)


def true_by_definition(h_NE: Tensor, w_CE: Tensor) -> Tensor:
    """E_x E_{y ~ p} [g g^T], the expectation over labels spelled out."""
    total = torch.zeros(w_CE.numel(), w_CE.numel(), dtype=w_CE.dtype)
    for h_E in h_NE:
        scores, p_C = score_jacobian(h_E, w_CE), (w_CE @ h_E).softmax(0)
        for y in range(len(w_CE)):
            total += p_C[y] * torch.outer(scores[y], scores[y]) / len(h_NE)
    return total


def empirical_by_definition(h_NE: Tensor, w_CE: Tensor, y_N: Tensor) -> Tensor:
    """E_x [g g^T] for the given labels."""
    total = torch.zeros(w_CE.numel(), w_CE.numel(), dtype=w_CE.dtype)
    for h_E, y in zip(h_NE, y_N, strict=True):
        score = score_jacobian(h_E, w_CE)[y]
        total += torch.outer(score, score) / len(h_NE)
    return total


def system(curvature, eta: float, damping: float, seed: int = 1) -> tuple[Tensor, Tensor]:
    """A gradient, and the anchored penalty eta diag(F) + damping: one number where eta is 0."""
    generator = torch.Generator().manual_seed(seed)
    g_CE = torch.randn(curvature.shape, generator=generator, dtype=torch.float64)
    return g_CE, eta * curvature.diagonal() + damping


def matrix_solution(curvature, g_CE: Tensor, penalty_CE: Tensor) -> Tensor:
    """By the matrix, with LU: no code of the solvers."""
    matrix = curvature.dense() + torch.diag(penalty_CE.flatten())
    return torch.linalg.solve(matrix, g_CE.flatten()).view_as(g_CE)


def assert_equal(got: Tensor, expected: Tensor, relative: float = 1e-6) -> None:
    assert (got - expected).norm() <= relative * expected.norm()
