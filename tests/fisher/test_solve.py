"""Every solver against LU of the whole matrix, the choice between them, and their errors."""

import pytest
import torch
from _heads import assert_equal, curvatures, matrix_solution, system
from hypothesis import given, settings
from hypothesis import strategies as st

from ngf.errors import InputError
from ngf.fisher import solve as package
from ngf.fisher.diagonal_head import DiagonalFisher
from ngf.fisher.ekfac import Ekfac
from ngf.fisher.kfac import Kfac
from ngf.fisher.solve import choose, conjugate_gradients, solve
from ngf.fisher.solve.deflation import Deflated
from ngf.fisher.solve.dense import cholesky
from ngf.fisher.solve.elementwise import divide
from ngf.fisher.solve.kronecker import in_eigenbasis
from ngf.fisher.solve.precondition import (
    approximate_inverse,
    diagonal_inverse,
    eigenbasis_inverse,
)
from ngf.fisher.solve.sample_space import gram, woodbury

DECADES = [1e-4, 1e-2, 1.0, 100.0]
ANCHORS = [0.0, 0.1, 10.0]


def each_kind(**shape):
    true, empirical = curvatures(**shape)
    return [true, empirical, Kfac(true), Ekfac(true), Kfac(empirical), Ekfac(empirical)]


@pytest.mark.parametrize("damping", DECADES)
@pytest.mark.parametrize("eta", ANCHORS)
def test_cholesky_equals_the_matrix(eta, damping):
    for curvature in each_kind():
        g_CE, penalty_CE = system(curvature, eta, damping)
        expected = matrix_solution(curvature, g_CE, penalty_CE)
        assert_equal(cholesky(curvature, g_CE, penalty_CE), expected)


@pytest.mark.parametrize("damping", DECADES)
@pytest.mark.parametrize("eta", ANCHORS)
@pytest.mark.parametrize("sure", [1.0, 8.0])
def test_conjugate_gradients_equal_the_matrix(eta, damping, sure):
    for curvature in each_kind(n=15, d=6, c=4, sure=sure):
        g_CE, penalty_CE = system(curvature, eta, damping)
        found = conjugate_gradients(curvature, g_CE, penalty_CE, tolerance=1e-11)
        assert_equal(found.v_CE, matrix_solution(curvature, g_CE, penalty_CE))
        rest = g_CE - curvature.product(found.v_CE) - penalty_CE * found.v_CE
        assert found.residual == pytest.approx((rest.norm() / g_CE.norm()).item())
        assert found.residual <= 1e-11
        assert found.iterations >= 1


@pytest.mark.parametrize("damping", DECADES)
@pytest.mark.parametrize("eta", ANCHORS)
@pytest.mark.parametrize("n", [1, 4, 40])
def test_woodbury_equals_the_matrix(n, eta, damping):
    empirical = curvatures(n=n, d=6, c=4)[1]
    g_CE, penalty_CE = system(empirical, eta, damping)
    expected = matrix_solution(empirical, g_CE, penalty_CE)
    assert_equal(woodbury(empirical, g_CE, penalty_CE), expected)


@pytest.mark.parametrize("eta", [0.0, 3.0])
def test_gram_is_that_of_the_gradients(eta):
    empirical = curvatures(n=7)[1]
    _, penalty_CE = system(empirical, eta, 0.1)
    j_NP = torch.einsum("nc,ne->nce", empirical.residual_NC, empirical.features_NE).flatten(1)
    expected = (j_NP / penalty_CE.flatten()) @ j_NP.T
    torch.testing.assert_close(gram(empirical, penalty_CE), expected)


@pytest.mark.parametrize("damping", DECADES)
def test_the_eigenbasis_is_exact_for_one_damping(damping):
    for curvature in each_kind()[2:]:
        g_CE, penalty_CE = system(curvature, 0.0, damping)
        expected = matrix_solution(curvature, g_CE, penalty_CE)
        assert_equal(in_eigenbasis(curvature, g_CE, penalty_CE), expected)


def test_the_eigenbasis_refuses_an_anchor():
    kfac = Kfac(curvatures()[0])
    with pytest.raises(InputError, match=r"exact for one damping alone.* use solve\(\)"):
        in_eigenbasis(kfac, *system(kfac, 1.0, 0.1))


def test_a_diagonal_is_divided_by():
    diagonal = DiagonalFisher(curvatures()[0])
    g_CE, penalty_CE = system(diagonal, 0.5, 0.1)
    expected = matrix_solution(diagonal, g_CE, penalty_CE)
    assert_equal(divide(diagonal, g_CE, penalty_CE), expected)


@given(
    st.integers(1, 20),
    st.integers(1, 6),
    st.integers(2, 5),
    st.sampled_from(ANCHORS),
    st.sampled_from(DECADES),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=25)
def test_all_methods_of_solve_agree(n, d, c, eta, damping, seed):
    with pytest.MonkeyPatch.context() as patch:
        for kind in [*each_kind(n=n, d=d, c=c, seed=seed), DiagonalFisher(curvatures()[0])]:
            g_CE, penalty_CE = system(kind, eta, damping)
            expected = matrix_solution(kind, g_CE, penalty_CE)
            for limit in (3000, 0):  # with and without dense
                patch.setattr(package, "DENSE", limit)
                assert_equal(solve(kind, g_CE, penalty_CE, tolerance=1e-11), expected)


def test_choose_by_kind_and_size(monkeypatch):
    true, empirical = curvatures(n=20, d=29, c=100)  # 3,000 parameters
    constant, anchored = torch.ones(100, 30), torch.rand(100, 30) + 0.1
    for kind in (true, empirical, Kfac(true)):
        assert choose(kind, anchored) == "dense"
    assert choose(Kfac(true), constant) == choose(Ekfac(true), constant) == "kronecker"
    assert choose(DiagonalFisher(true), anchored) == "elementwise"
    monkeypatch.setattr(package, "DENSE", 2999)
    assert choose(true, constant) == choose(Ekfac(true), anchored) == "conjugate"
    assert choose(empirical, anchored) == choose(empirical, constant) == "sample_space"
    monkeypatch.setattr(package, "SAMPLES", 19)
    assert choose(empirical, constant) == "conjugate"


def test_a_gram_matrix_that_costs_more_than_iterations_is_not_chosen(monkeypatch):
    monkeypatch.setattr(package, "DENSE", 0)
    empirical = curvatures(n=500, d=24, c=30)[1]
    assert choose(empirical, torch.ones(30, 25)) == "sample_space"
    assert choose(empirical, torch.rand(30, 25) + 0.1) == "conjugate"
    many = curvatures(n=751, d=24, c=30)[1]  # more samples than parameters
    assert choose(many, torch.ones(30, 25)) == "conjugate"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_default_tolerances(dtype):
    true = curvatures(n=40, d=30, c=20)[0]
    single = type(true)(true.features_NE.to(dtype), true.probabilities_NC.to(dtype))
    g_CE, penalty_CE = (t.to(dtype) for t in system(true, 0.1, 1e-3))
    found = conjugate_gradients(single, g_CE, penalty_CE)
    limit = {torch.float64: 1e-7, torch.float32: 1e-4}[dtype]
    assert limit / 1e3 < found.residual <= limit


def test_the_preconditioner_saves_iterations():
    true, empirical = curvatures(n=200, d=40, c=10, sure=4.0)
    for curvature, eta in ((true, 0.0), (true, 1.0), (empirical, 0.0), (empirical, 1.0)):
        g_CE, penalty_CE = system(curvature, eta, 1e-4)
        default = conjugate_gradients(curvature, g_CE, penalty_CE)
        diagonal = diagonal_inverse(curvature, penalty_CE)
        other = conjugate_gradients(curvature, g_CE, penalty_CE, inverse=diagonal)
        assert default.iterations < 0.8 * other.iterations


def test_each_curvature_gets_the_preconditioner_that_knows_most_of_it():
    true, empirical = curvatures()
    g_CE, penalty_CE = system(true, 0.0, 0.1)
    assert isinstance(approximate_inverse(true, penalty_CE), Deflated)
    assert isinstance(approximate_inverse(empirical, penalty_CE), Deflated)
    for kind in (Kfac(true), Ekfac(true), DiagonalFisher(true)):  # exact for one damping
        inverse = approximate_inverse(kind, penalty_CE)
        assert_equal(inverse(g_CE), matrix_solution(kind, g_CE, penalty_CE))


def test_ekfac_can_precondition_what_it_approximates():
    true = curvatures(n=200, d=20, c=10, sure=0.1)[0]
    g_CE, penalty_CE = system(true, 0.0, 1e-4)
    inverse = eigenbasis_inverse(Ekfac(true).eigenbasis, penalty_CE)
    found = conjugate_gradients(true, g_CE, penalty_CE, inverse=inverse)
    diagonal = diagonal_inverse(true, penalty_CE)
    other = conjugate_gradients(true, g_CE, penalty_CE, inverse=diagonal)
    assert found.iterations < 0.7 * other.iterations


def test_no_gradient_no_step():
    true = curvatures()[0]
    _, penalty_CE = system(true, 0.1, 0.1)
    found = conjugate_gradients(true, torch.zeros_like(penalty_CE), penalty_CE)
    assert (found.v_CE.abs().max(), found.iterations, found.residual) == (0, 0, 0)
    for kind in each_kind():
        assert solve(kind, torch.zeros_like(penalty_CE), penalty_CE).abs().max() == 0


def every_solver():
    true, empirical = curvatures()
    return {
        "solve": (solve, true),
        "cholesky": (cholesky, true),
        "conjugate": (conjugate_gradients, true),
        "eigenbasis": (in_eigenbasis, Ekfac(true)),
        "woodbury": (woodbury, empirical),
        "divide": (divide, DiagonalFisher(true)),
    }


@pytest.mark.parametrize("name", every_solver())
@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf])
def test_a_penalty_that_is_not_positive_and_finite_is_refused(name, value):
    method, curvature = every_solver()[name]
    penalty_CE = torch.ones(curvature.shape, dtype=torch.float64)
    penalty_CE[1, 2] = value
    with pytest.raises(InputError, match=r"damping.* positive and finite.*; raise the damping$"):
        method(curvature, torch.ones_like(penalty_CE), penalty_CE)


@pytest.mark.parametrize("name", every_solver())
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_is_refused(name, value):
    method, curvature = every_solver()[name]
    g_CE = torch.ones(curvature.shape, dtype=torch.float64)
    g_CE[1, 2] = value
    with pytest.raises(InputError, match=r"gradient is not finite.* raise the damping"):
        method(curvature, g_CE, torch.ones_like(g_CE))


@pytest.mark.parametrize("name", every_solver())
def test_matrices_of_another_shape_are_refused(name):
    method, curvature = every_solver()[name]
    right, wrong = torch.ones(3, 5, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(InputError, match=r"gradient must be \[3, 5\].*got \[3, 4\]"):
        method(curvature, wrong, right)
    with pytest.raises(InputError, match=r"penalty must be \[3, 5\].*got \[3, 4\]"):
        method(curvature, right, wrong)


def test_a_singular_matrix_is_said_and_never_answered_with_nan():
    """In float32, curvature 1e12 next to damping 1e-12 is no positive matrix any more."""
    true, empirical = curvatures(n=3, d=6, c=3)
    h_NE, p_NC = 1e6 * true.features_NE.float(), true.probabilities_NC.float()
    kinds = [type(true)(h_NE, p_NC), type(empirical)(h_NE, p_NC, torch.tensor([0, 1, 2]))]
    tiny = torch.full((3, 7), 1e-12)
    tiny[0, 0] = 2e-12
    message = (
        r"^natural gradient \((dense|sample space|conjugate)\): [^\n]*raise the damping[^\n]*$"
    )
    attempts = [(cholesky, kinds[0]), (woodbury, kinds[1]), (conjugate_gradients, kinds[0])]
    for method, curvature in attempts:
        with pytest.raises(InputError, match=message):
            method(curvature, torch.randn(3, 7), tiny)


def test_too_few_iterations_are_said():
    true = curvatures(n=40, d=20, c=10)[0]
    g_CE, penalty_CE = system(true, 0.1, 1e-6)
    message = r"residual \S+ after 3 iterations, asked for 1e-07; raise the damping .*tolerance"
    with pytest.raises(InputError, match=message):
        conjugate_gradients(true, g_CE, penalty_CE, iterations=3)


def test_negative_curvature_is_said():
    class Negative(DiagonalFisher):
        def product(self, v_CE):
            return -super().product(v_CE)

    true = curvatures()[0]
    g_CE, penalty_CE = system(true, 0.0, 1e-9)
    with pytest.raises(InputError, match=r"along direction 1 is -\S+, not positive; raise the dam"):
        conjugate_gradients(Negative(true), g_CE, penalty_CE)
