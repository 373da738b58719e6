"""Masks on channels: which layers have them, and that a masked pass is the pruned network's."""

import pytest
import torch
from conftest import SIZE, tiny_model
from torch import nn
from torch.func import functional_call

from ngf import masks, models
from ngf.errors import InputError


def without_norms() -> models.Classifier:
    model = tiny_model()
    for module in list(model.net.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(module, child, nn.Identity())
    return model


def grouped() -> models.Classifier:
    card = tiny_model().card
    card["options"] = {**card["options"], "norm": "group"}
    torch.manual_seed(0)
    return models.build(card, [0.3] * 3, [0.2] * 3).eval()


def test_norms_are_masked_and_else_convolutions_but_never_the_classifier():
    for make, kind in ((tiny_model, nn.BatchNorm2d), (grouped, nn.GroupNorm)):
        layers = masks.neurons(make())
        assert layers
        assert all(type(one.module) is kind for one in layers.values())
    layers = masks.neurons(without_norms())
    assert layers
    assert all(isinstance(one.module, nn.Conv2d) for one in layers.values())


@pytest.mark.parametrize("make", [tiny_model, grouped, without_norms])
def test_a_masked_pass_is_what_the_masked_weights_give(make):
    model = make()
    layers = masks.neurons(model)
    torch.manual_seed(1)
    mask = {name: torch.rand_like(one) for name, one in masks.filled(layers, 1.0).items()}
    bias = {name: torch.rand_like(one) for name, one in mask.items()}
    x_NCHW = torch.rand(3, 3, SIZE, SIZE)
    plain = model(x_NCHW)
    changed = masks.scaled(layers, mask, bias)
    found = functional_call(model, changed, (x_NCHW,))
    assert torch.equal(model(x_NCHW), plain)  # nothing was written
    masks.apply(layers, mask, bias)
    torch.testing.assert_close(model(x_NCHW), found)
    assert not torch.allclose(found, plain, rtol=0.01)


def test_a_closed_channel_of_a_convolution_is_silent():
    model = without_norms()
    layers = masks.neurons(model)
    name, one = next(iter(layers.items()))
    mask = masks.filled(layers, 1.0)
    mask[name][0] = 0
    masks.apply(layers, mask, mask)
    assert one.weight[0].abs().sum() == 0
    assert one.weight[1:].abs().sum() > 0


def test_a_model_of_a_classifier_alone_has_nothing_to_mask():
    with pytest.raises(InputError, match="no channel to mask"):
        masks.neurons(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
