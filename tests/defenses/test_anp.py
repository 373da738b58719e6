"""ANP against its definition: the perturbations, the masks' gradient, the threshold."""

import copy

import pytest
import torch
from conftest import colour_split, tiny_model
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ngf import device, masks
from ngf.defenses import Clean
from ngf.defenses._thresholds import prune_by_threshold
from ngf.defenses.anp import _loss, perturbations, purify
from ngf.norms import statistics_held

N, EPS = 48, 0.4
OPTIONS = {
    "batch_size": N, "lr": 0.2, "momentum": 0.9, "eps": EPS, "inner_steps": 1, "alpha": 0.2,
    "max_drop": 0.1, "shift": 0, "seed": 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


@pytest.fixture
def clean() -> Clean:
    split = colour_split(N, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), flip=False)


@pytest.fixture
def batch(clean):
    return clean.x_NHWC.permute(0, 3, 1, 2).float() / 255, clean.y_N


def ones(model):
    layers = masks.neurons(model)
    return layers, masks.filled(layers, 1.0)


def pushed(model, layers, mask, d, e, batch):
    weights = {name: mask[name] + d[name] for name in mask}
    changed = masks.scaled(layers, weights, {name: 1 + one for name, one in e.items()})
    return _loss(model, changed, *batch)


def test_perturbations_raise_the_loss_and_keep_within_eps(batch):
    model = tiny_model().train().requires_grad_(False)
    layers, mask = ones(model)
    with statistics_held(model):
        zero = masks.filled(layers, 0.0)
        before = pushed(model, layers, mask, zero, zero, batch)
        d, e = perturbations(
            model, layers, mask, batch, eps=EPS, steps=1,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        after = pushed(model, layers, mask, d, e, batch)
    assert after > 1.2 * before
    both = torch.cat([t.flatten() for t in (*d.values(), *e.values())])
    assert both.abs().max() <= EPS
    assert (both.abs() == EPS).float().mean() > 0.2  # where start and step agree


def test_the_masks_gradient_is_the_finite_difference(batch):
    model = tiny_model().double().eval().requires_grad_(False)
    x, y = batch[0].double(), batch[1]
    layers, mask = ones(model)
    mask = {name: (0.9 * one.double()).requires_grad_() for name, one in mask.items()}

    def loss(values):
        return cross_entropy(functional_call(model, masks.scaled(layers, values), (x,)), y)

    name = next(iter(mask))
    found = torch.autograd.grad(loss(mask), mask[name])[0]
    for channel in range(3):
        step = torch.zeros_like(mask[name])
        step[channel] = 1e-6
        up = loss({**mask, name: mask[name] + step})
        down = loss({**mask, name: mask[name] - step})
        torch.testing.assert_close(found[channel], (up - down) / 2e-6, rtol=1e-4, atol=1e-8)


def test_the_largest_threshold_that_keeps_accuracy_is_taken(clean):
    """Masks in the order of channels: what is pruned grows with the threshold."""
    for max_drop in (0.0, 0.3, 1.0):
        model = tiny_model()
        layers, mask = ones(model)
        for one in mask.values():
            one.copy_(torch.linspace(0.02, 1, len(one)))
        victim = copy.deepcopy(model)
        notes = prune_by_threshold(model, layers, mask, clean, max_drop)
        pruned = sum(int((one <= notes["threshold"]).sum()) for one in mask.values())
        assert notes["pruned"] == (pruned if notes["threshold"] else 0)
        for name, one in masks.neurons(victim).items():
            kept = (mask[name] > notes["threshold"]) | (notes["threshold"] == 0)
            assert torch.equal(layers[name].weight, one.weight * kept)
            assert torch.equal(layers[name].bias, one.bias)
    assert notes["threshold"] == 0.9  # any loss of accuracy was allowed


def test_nothing_but_scales_changes(clean):
    before = tiny_model().state_dict()
    found = purify(tiny_model(), clean, steps=3, **{**OPTIONS, "max_drop": 1.0})
    scales = {f"{name}.weight" for name in masks.neurons(tiny_model())}
    changed = {k for k, v in found.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed <= scales
