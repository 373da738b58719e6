"""FIP: trace and diagonal of the Fisher against their definitions, in float64."""

import pytest
import torch
from conftest import SIZE, colour_split, tiny_model
from torch import nn

from ngf.defenses import Clean, fip


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def images(n=6):
    return torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()


def exact_trace(model, x_NCHW):
    """Mean over images, expectation over the model's answers, of |grad log p|², with a gradient."""
    parameters, total = list(model.parameters()), 0.0
    for x_CHW in x_NCHW:
        log_p = model(x_CHW[None]).log_softmax(1)[0]
        for label in range(len(log_p)):
            gradients = torch.autograd.grad(log_p[label], parameters, create_graph=True)
            square = sum(g.square().sum() for g in gradients)
            total = total + log_p[label].exp() * square
    return total / len(x_NCHW)


def test_the_trace_and_its_gradient_are_unbiased():
    model, x_NCHW = network(), images()
    parameters = list(model.parameters())
    exact = exact_trace(model, x_NCHW)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(exact, parameters)])
    generator = torch.Generator().manual_seed(0)
    values, slopes = [], []
    for _ in range(1500):
        found = fip.trace(model, parameters, x_NCHW, generator)
        slopes.append(torch.cat([g.flatten() for g in torch.autograd.grad(found, parameters)]))
        values.append(found.detach())
    values, slopes = torch.stack(values), torch.stack(slopes)
    error = values.std() / len(values) ** 0.5
    assert (values.mean() - exact).abs() < 4 * error
    assert error < 0.05 * exact
    errors = slopes.std(0) / len(slopes) ** 0.5
    assert ((slopes.mean(0) - slope).abs() <= 5 * errors + 1e-9).all()
    cosine = torch.nn.functional.cosine_similarity(slopes.mean(0), slope, dim=0)
    assert cosine > 0.95


def test_the_diagonal_is_the_mean_of_squared_gradients_at_drawn_labels(monkeypatch):
    model, x_NCHW = network(), images()
    with torch.no_grad():
        p_NC = model(x_NCHW).softmax(1)
    drawn = torch.multinomial(p_NC, 1, generator=torch.Generator().manual_seed(4)).squeeze(1)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x_CHW, label in zip(x_NCHW, drawn, strict=True):
        loss = -model(x_CHW[None]).log_softmax(1)[0, label]
        for name, g in zip(
            expected, torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            expected[name] += g.square() / len(x_NCHW)
    for numbers_at_once in (10**9, 1):  # one chunk, and one image a chunk
        monkeypatch.setattr(fip, "PER_SAMPLE", numbers_at_once)
        found = fip.diagonal(model, x_NCHW, torch.Generator().manual_seed(4))
        for name, square in expected.items():
            torch.testing.assert_close(found[name], square)


@pytest.mark.parametrize("weight", ["trace_weight", "anchor"])
def test_each_term_lowers_what_it_punishes(weight, numbers):
    split = colour_split(48, seed=5)
    clean = Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), flip=False)
    x_NCHW = torch.rand(32, 3, SIZE, SIZE)
    plain = {**numbers["defenses"]["fip"], "trace_weight": 0.0, "anchor": 0.0, "epochs": 15}

    def left(value):
        found = fip.purify(tiny_model(), clean, **{**plain, weight: value}).model
        if weight == "anchor":
            start = dict(tiny_model().named_parameters())
            return sum((p - start[n]).square().sum() for n, p in found.named_parameters()).item()
        generator = torch.Generator().manual_seed(0)
        parameters = list(found.parameters())
        draws = [fip.trace(found, parameters, x_NCHW, generator).item() for _ in range(8)]
        return sum(draws) / len(draws)

    assert left({"anchor": 100.0, "trace_weight": 0.01}[weight]) < 0.9 * left(0.0)
