"""FT-SAM against its formulas: the perturbation, the smoothed loss, one whole step."""

import copy

import pytest
import torch
from conftest import CLASSES, colour_split, tiny_model
from torch import nn
from torch.nn.functional import cross_entropy

from ngf import device
from ngf.defenses import Clean, finetune
from ngf.defenses.ft_sam import backward, perturbed, purify
from ngf.errors import InputError
from ngf.norms import statistics_held
from ngf.training import Batches

N = 48
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "shift": 1, "seed": 7}
ONE_STEP = {"epochs": 1, "batch_size": N, "rho": 0.5, "label_smoothing": 0.1, **SGD}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


@pytest.fixture
def clean() -> Clean:
    split = colour_split(N, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), flip=True)


def batch(clean):
    """The only batch of an epoch, as drawn with the options above."""
    batches = Batches(clean.x_NHWC, clean.y_N, size=N, shift=1, flip=True, seed=7)
    return next(batches.take(1))


def smoothed(logits_BC, y_B, smoothing):
    """BackdoorBench's loss: 1 - s on the label, s shared by the other classes."""
    target_BC = torch.full_like(logits_BC, smoothing / (CLASSES - 1))
    target_BC[torch.arange(len(y_B)), y_B] = 1 - smoothing
    return -(target_BC * logits_BC.log_softmax(1)).sum(1).mean()


def test_the_perturbation_is_asams():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape).double()) for shape in ((3, 4), (3,), (2,))]
    before = [p.detach().clone() for p in parameters]
    gradients = [torch.randn_like(p) for p in parameters[:2]]
    for parameter, gradient in zip(parameters, gradients, strict=False):  # the last has none
        parameter.grad = gradient
    w, g = (torch.cat([t.flatten() for t in both]) for both in (before[:2], gradients))
    expected = w + 2 * w**2 * g / (w.abs() * g).square().sum().sqrt()
    with perturbed(parameters, rho=2.0):
        found = torch.cat([p.detach().flatten() for p in parameters[:2]])
        assert torch.equal(parameters[2], before[2])
        parameters[0].grad = None  # what happens to gradients inside does not matter
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
    assert all(torch.equal(p, w) for p, w in zip(parameters, before, strict=True))


def test_the_loss_is_smoothed_as_in_backdoorbench(model, clean):
    x_BCHW, y_B = batch(clean)
    backward(model, x_BCHW, y_B, 0.3)
    expected = torch.autograd.grad(
        smoothed(model(x_BCHW), y_B, 0.3), list(model.net[-1].parameters())
    )
    plain = torch.autograd.grad(cross_entropy(model(x_BCHW), y_B), model.net[-1].weight)[0]
    torch.testing.assert_close(model.net[-1].weight.grad, expected[0])
    torch.testing.assert_close(model.net[-1].bias.grad, expected[1])
    assert not torch.allclose(expected[0], plain, rtol=0.01)


def test_one_step_descends_by_the_gradient_at_the_perturbed_weights(model, clean):
    x_BCHW, y_B = batch(clean)
    twin = copy.deepcopy(model).double().train()
    parameters = list(twin.parameters())

    def gradients():
        return torch.autograd.grad(smoothed(twin(x_BCHW.double()), y_B, 0.1), parameters)

    before = [p.detach().clone() for p in parameters]
    first = gradients()
    weighted = [(w.abs() * g).square().sum() for w, g in zip(before, first, strict=True)]
    norm = torch.stack(weighted).sum().sqrt()
    with torch.no_grad():
        for p, w, g in zip(parameters, before, first, strict=True):
            p.copy_(w + 0.5 * w**2 * g / norm)
    expected = [w - 0.1 * (g + 0.01 * w) for w, g in zip(before, gradients(), strict=True)]
    found = purify(model, clean, **ONE_STEP).model
    for p, e, w in zip(found.parameters(), expected, before, strict=True):
        torch.testing.assert_close(p.double() - w, e - w, rtol=1e-3, atol=1e-6)


def test_batch_norm_remembers_the_first_pass_alone(clean):
    twin = tiny_model().train()
    twin(batch(clean)[0])
    found = dict(purify(tiny_model(), clean, **ONE_STEP).model.named_buffers())
    for name, expected in twin.named_buffers():
        torch.testing.assert_close(found[name], expected)
    start = dict(tiny_model().named_buffers())
    assert any(not torch.allclose(found[name], start[name]) for name in found)


def test_statistics_are_held_inside_the_block_alone(model, clean):
    model.train()
    x_BCHW = batch(clean)[0]
    before = copy.deepcopy(dict(model.named_buffers()))
    with statistics_held(model):
        held = model(x_BCHW)
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())
    assert torch.equal(model(x_BCHW), held)  # the batch's own statistics either way
    assert not all(torch.equal(before[name], b) for name, b in model.named_buffers())


def test_without_radius_and_smoothing_it_is_fine_tuning(clean):
    common = {"epochs": 4, "batch_size": 16, **SGD}
    found = purify(tiny_model(), clean, rho=0.0, label_smoothing=0.0, **common)
    expected = finetune.purify(tiny_model(), clean, **common)
    assert (found.tuned, found.steps) == (expected.tuned, expected.steps)
    for key, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[key], value)
    sharp = purify(tiny_model(), clean, rho=2.0, label_smoothing=0.0, **common)
    weight = "net.0.weight"
    assert not torch.allclose(
        sharp.model.state_dict()[weight], expected.model.state_dict()[weight], rtol=1e-3
    )


def test_another_seed_gives_other_weights(clean):
    first, other = (
        purify(tiny_model(), clean, **{**ONE_STEP, "seed": seed}).model.net[-1].weight
        for seed in (0, 1)
    )
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "value"), [("rho", -1.0), ("label_smoothing", 0.7), ("epochs", 0), ("shift", 16)]
)
def test_impossible_options_are_named(name, value, model, clean):
    with pytest.raises(InputError, match=name):
        purify(model, clean, **{**ONE_STEP, name: value})
