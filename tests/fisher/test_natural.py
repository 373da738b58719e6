"""One step of natural-gradient descent against dense linear algebra in float64."""

import pytest
import torch
from conftest import SIZE, tiny_model
from torch.nn.functional import cross_entropy

from ngf import device
from ngf.errors import InputError
from ngf.fisher import natural
from ngf.fisher.along import fisher_along
from ngf.fisher.diagonal import fisher_diagonal, tuned_parameters
from ngf.training import Batches


def dense_fisher(model, x_NCHW, names) -> torch.Tensor:
    """The definition: E over images, exact expectation over labels, of g g^T."""
    parameters = dict(model.named_parameters())
    p_NC = model(x_NCHW).softmax(1).detach()
    total = 0
    for x_CHW, p_C in zip(x_NCHW, p_NC, strict=True):
        for label, weight in enumerate(p_C):
            loss = cross_entropy(model(x_CHW[None]), torch.tensor([label]))
            gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
            flat = torch.cat([g.flatten() for g in gradients])
            total = total + weight * torch.outer(flat, flat) / len(x_NCHW)
    return total


def flatten(named) -> torch.Tensor:
    return torch.cat([value.flatten() for value in named.values()])


def test_fisher_along_a_direction_equals_the_dense_quadratic_form():
    model = tiny_model().double()
    x_NCHW = torch.rand(4, 3, SIZE, SIZE, dtype=torch.float64)
    names = list(tuned_parameters(model))
    direction = {name: torch.randn_like(p) for name, p in tuned_parameters(model).items()}
    v = flatten(direction)
    expected = v @ dense_fisher(model, x_NCHW, names) @ v
    torch.testing.assert_close(fisher_along(model, x_NCHW, direction), expected)


def test_step_minimises_the_quadratic_model_along_its_direction():
    model = tiny_model().double()
    x_NCHW = torch.rand(4, 3, SIZE, SIZE, dtype=torch.float64)
    parameters = tuned_parameters(model)
    gradient = {name: torch.randn_like(p) for name, p in parameters.items()}
    fisher = {name: torch.rand_like(p) for name, p in parameters.items()}
    held = {name: torch.rand_like(p) for name, p in parameters.items()}
    move = flatten(natural._step(model, x_NCHW, gradient, fisher, held))
    direction = flatten(gradient) / (flatten(fisher) + flatten(held))
    torch.testing.assert_close(move / move.norm(), direction / direction.norm())
    matrix = dense_fisher(model, x_NCHW, list(parameters)) + torch.diag(flatten(held))

    def modelled(a):
        return -a * flatten(gradient) @ move + 0.5 * a**2 * move @ matrix @ move

    assert modelled(1) < min(modelled(0.99), modelled(1.01))


def tune(model, monkeypatch, **rule):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)
    x_NHWC = torch.randint(0, 256, (24, SIZE, SIZE, 3), dtype=torch.uint8)
    batches = Batches(x_NHWC, torch.arange(24) % 3, size=24, shift=0, flip=False, seed=0)

    def loss():
        with torch.no_grad():
            x_NCHW, y_N = next(batches.take(1))
            return cross_entropy(model(x_NCHW), y_N).item()

    before = loss()
    chosen = natural.Rule(**{"lr": 0.5, "eta": 0.0, "damping": 0.1, **rule})
    natural.descend(model, batches, steps=8, views=1, rule=chosen, generator=torch.Generator())
    return before, loss()


def test_a_heavy_anchor_holds_what_the_clean_data_determines(monkeypatch):
    """The anchor's curvature is in the solve: with eta going to infinity, F0 lets nothing move."""

    def moved(eta):
        model = tiny_model()
        start = flatten(tuned_parameters(model)).detach().clone()
        x_NHWC = torch.randint(0, 256, (24, SIZE, SIZE, 3), dtype=torch.uint8)
        batches = Batches(x_NHWC, torch.arange(24) % 3, size=24, shift=0, flip=False, seed=0)
        generator = torch.Generator().manual_seed(0)
        fisher = flatten(fisher_diagonal(model, batches.take(1), generator))
        rule = natural.Rule(lr=0.5, eta=eta, damping=0.1)
        natural.descend(model, batches, steps=4, views=1, rule=rule, generator=torch.Generator())
        return (fisher * (flatten(tuned_parameters(model)).detach() - start).square()).sum().item()

    torch.manual_seed(0)
    assert moved(1e6) < 1e-3 * moved(0.0)


def test_no_step_is_longer_than_the_radius():
    model = tiny_model()
    with torch.no_grad():
        model.net[-1].weight.mul_(100)  # sure, and wrong about random labels
    start = flatten(tuned_parameters(model)).detach().clone()
    x_NHWC = torch.randint(0, 256, (24, SIZE, SIZE, 3), dtype=torch.uint8)
    batches = Batches(x_NHWC, torch.arange(24) % 3, size=24, shift=0, flip=False, seed=0)
    rule = natural.Rule(lr=1.0, eta=0.0, damping=0.01)
    natural.descend(model, batches, steps=1, views=1, rule=rule, generator=torch.Generator())
    moved = flatten(tuned_parameters(model)).detach() - start
    assert moved.norm() <= 1.0001 * natural.RADIUS * start.norm()


@pytest.mark.parametrize("damping", [1e-2, 0.1, 1.0, 100.0])
def test_it_descends_over_four_decades_of_damping(damping, monkeypatch):
    torch.manual_seed(0)
    before, after = tune(tiny_model(), monkeypatch, damping=damping)
    assert after < before


def test_a_singular_fisher_is_said(monkeypatch):
    model = tiny_model()
    with torch.no_grad():  # answers are certain: no label but one can be drawn, F vanishes
        model.net[-1].weight.zero_()
        model.net[-1].bias.copy_(torch.tensor([1e4, 0, 0]))
    with pytest.raises(InputError, match=r"step 0 is not finite.*raise the damping \(now 0.1\)"):
        tune(model, monkeypatch)
