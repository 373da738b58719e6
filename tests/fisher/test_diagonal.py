"""The diagonal Fisher against its definition: one sample at a time, by autograd, in float64."""

import pytest
import torch
from conftest import SIZE, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from ngf import device
from ngf.fisher import diagonal
from ngf.models import batch_norms, head


@given(st.integers(1, 9), st.integers(1, 6), st.integers(2, 5), st.integers(0, 2**31))
@settings(deadline=None)
def test_head_is_the_diagonal_of_the_closed_form(n, d, c, seed):
    generator = torch.Generator().manual_seed(seed)
    h_ND = torch.randn(n, d, generator=generator, dtype=torch.float64)
    p_NC = torch.randn(n, c, generator=generator, dtype=torch.float64).softmax(1)
    weight_CD, bias_C = diagonal.head_diagonal(h_ND, p_NC)
    full = torch.zeros(c * d, c * d, dtype=torch.float64)
    for h_D, p_C in zip(h_ND, p_NC, strict=True):
        full += torch.kron(torch.diag(p_C) - torch.outer(p_C, p_C), torch.outer(h_D, h_D)) / n
    torch.testing.assert_close(weight_CD.flatten(), full.diagonal())
    torch.testing.assert_close(bias_C, (p_NC * (1 - p_NC)).mean(0))


def test_head_equals_the_expectation_over_labels_by_autograd():
    torch.manual_seed(0)
    linear = nn.Linear(4, 3).double()
    h_ND = torch.randn(5, 4, dtype=torch.float64)
    p_NC = linear(h_ND).softmax(1).detach()
    expected = torch.zeros_like(linear.weight)
    for h_D, p_C in zip(h_ND, p_NC, strict=True):
        for label in range(3):
            loss = cross_entropy(linear(h_D[None]), torch.tensor([label]))
            (gradient,) = torch.autograd.grad(loss, linear.weight)
            expected += p_C[label] * gradient.square() / len(h_ND)
    torch.testing.assert_close(diagonal.head_diagonal(h_ND, p_NC)[0], expected)


@pytest.fixture
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


@pytest.mark.parametrize("arch", ["preact_resnet", "resnet"])
def test_norms_equal_squared_gradients_one_sample_at_a_time(arch, full_precision):
    model = tiny_model(arch=arch).double()
    x_NCHW = torch.rand(6, 3, SIZE, SIZE, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    got = diagonal.fisher_diagonal(model, [(x_NCHW, torch.zeros(6).long())], generator)

    generator.manual_seed(3)
    drawn_N = torch.multinomial(model(x_NCHW).float().softmax(1), 1, generator=generator)[:, 0]
    parameters = {
        name: p
        for name, p in diagonal.tuned_parameters(model).items()
        if p is not head(model).weight and p is not head(model).bias
    }
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x_CHW, y in zip(x_NCHW, drawn_N, strict=True):
        loss = cross_entropy(model(x_CHW[None]), y[None])
        for name, g in zip(
            parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True
        ):
            expected[name] += g.square() / len(x_NCHW)
    assert len(parameters) == 2 * len(batch_norms(model))
    for name in parameters:
        # The sums of squares are taken in float32.
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-10)


def test_batches_are_averaged_over_images_not_over_batches(full_precision):
    model = tiny_model()
    x_NCHW, y_N = torch.rand(6, 3, SIZE, SIZE), torch.zeros(6).long()
    weight = next(name for name, p in model.named_parameters() if p is head(model).weight)

    def of(*sizes):
        batches = zip(x_NCHW.split(sizes), y_N.split(sizes), strict=True)
        return diagonal.fisher_diagonal(model, batches, torch.Generator())[weight]

    torch.testing.assert_close(of(6), of(5, 1))


def test_tuned_parameters_are_the_norms_and_the_head():
    model = tiny_model()
    names = diagonal.tuned_parameters(model)
    assert len(names) == 2 * len(batch_norms(model)) + 2
    assert sum(p.numel() for p in names.values()) < sum(p.numel() for p in model.parameters())
