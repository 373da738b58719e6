"""Cached features change nothing but the time: the head moves as by SGD through the network."""

import copy
import math

import pytest
import torch
from conftest import colour_split, tiny_model
from torch.nn.functional import cross_entropy

from ngf import device
from ngf.defenses import Clean
from ngf.defenses.finetune_head import purify
from ngf.errors import InputError
from ngf.models import head
from ngf.training import augment, pixels

N = 48
OPTIONS = {
    "epochs": 3,
    "batch_size": 20,  # two batches an epoch, eight images left out
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "views": 2,
    "shift": 1,
    "seed": 7,
}


@pytest.fixture
def clean() -> Clean:
    split = colour_split(N, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), flip=True)


def test_only_the_head_changes(model, clean):
    before = copy.deepcopy(model.state_dict())
    purified = purify(model, clean, **OPTIONS)
    after = purified.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    layer = head(model)
    assert changed == {
        name for name, p in model.named_parameters() if p is layer.weight or p is layer.bias
    }
    assert purified.tuned == layer.weight.numel() + layer.bias.numel()
    assert purified.steps == 3 * (N // 20)


def through_the_network(model, clean) -> dict:
    """The head after SGD written out, every batch sent through the whole network."""
    generator = torch.Generator().manual_seed(OPTIONS["seed"])
    views = [
        augment(clean.x_NHWC, shift=1, flip=True, generator=generator)
        for _ in range(OPTIONS["views"])
    ]
    parameters = list(head(model).parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    step, steps = 0, 6
    for epoch in range(OPTIONS["epochs"]):
        order_N = torch.randperm(N, generator=generator)
        for rows_B in (order_N[:20], order_N[20:40]):
            loss = cross_entropy(model(pixels(views[epoch % 2][rows_B])), clean.y_N[rows_B])
            lr = OPTIONS["lr"] * (1 + math.cos(math.pi * step / steps)) / 2
            for p, v, gradient in zip(
                parameters, velocity, torch.autograd.grad(loss, parameters), strict=True
            ):
                v.mul_(0.9).add_(gradient + 0.01 * p.detach())
                p.data.sub_(lr * v)
            step += 1
    return model.state_dict()


def test_cached_features_give_what_the_whole_network_gives(clean, monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)
    found = purify(tiny_model().double(), clean, **OPTIONS).model.state_dict()
    expected = through_the_network(tiny_model().double(), clean)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("epochs", [1, 9])
def test_the_network_sees_each_view_once(epochs, model, clean):
    images = []
    hook = model.register_forward_pre_hook(lambda _, args: images.append(len(args[0])))
    purify(model, clean, **{**OPTIONS, "epochs": epochs})
    hook.remove()
    assert sum(images) == OPTIONS["views"] * N


def test_a_model_in_train_mode_is_tuned_as_one_in_evaluation_mode(clean):
    found = purify(tiny_model().train(), clean, **OPTIONS).model
    expected = purify(tiny_model().eval(), clean, **OPTIONS).model
    assert not found.training
    assert torch.equal(head(found).weight, head(expected).weight)


def test_another_seed_gives_another_head(clean):
    first, other = (
        head(purify(tiny_model(), clean, **{**OPTIONS, "seed": seed}).model).weight
        for seed in (0, 1)
    )
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "value"), [("views", 0), ("epochs", 0), ("batch_size", 0), ("lr", -1.0), ("shift", 16)]
)
def test_impossible_options_are_named(name, value, model, clean):
    with pytest.raises(InputError, match=name):
        purify(model, clean, **{**OPTIONS, name: value})
