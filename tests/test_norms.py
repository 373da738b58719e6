"""Batch-norm statistics: computed anew, or moved towards one batch's."""

import copy

import pytest
import torch
from conftest import CLASSES, SIZE, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ngf import device, models, norms
from ngf.models import batch_norms

CPU = torch.device("cpu")
LABELS = torch.arange(16) % CLASSES


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


def batches(n: int = 4):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(16, 3, SIZE, SIZE, generator=generator), LABELS) for _ in range(n)]


def without_batch_norm():
    card = tiny_model().card
    card["options"] = {**card["options"], "norm": "group"}
    return models.build(card, [0.3] * 3, [0.2] * 3)


def state(model) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(left, right) -> bool:
    return all(torch.equal(left[key], right[key]) for key in left)


# Computed anew --------------------------------------------------------------------------------


def test_recalibration_takes_the_statistics_of_the_first_layer_from_the_batches():
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    model[0].running_mean.fill_(7)
    model[0].running_var.fill_(7)
    data = batches()
    norms.recalibrate(model, data, CPU)
    means = torch.stack([x.double().mean((0, 2, 3)) for x, _ in data]).mean(0)
    variances = torch.stack([x.double().var((0, 2, 3)) for x, _ in data]).mean(0)
    close = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}
    torch.testing.assert_close(model[0].running_mean, means, **close)
    torch.testing.assert_close(model[0].running_var, variances, **close)
    assert not model.training


def test_recalibration_forgets_what_the_statistics_were():
    model, other = tiny_model(), tiny_model()
    for norm in batch_norms(other):
        norm.running_mean.add_(3)
        norm.running_var.mul_(5)
    norms.recalibrate(model, batches(), CPU)
    norms.recalibrate(other, batches(), CPU)
    assert equal(state(model), state(other))
    assert not equal(state(model), state(tiny_model()))


def test_recalibration_changes_no_parameter():
    model, before = tiny_model(), dict(tiny_model().named_parameters())
    norms.recalibrate(model, batches(), CPU)
    assert equal(before, dict(model.named_parameters()))
    assert all(norm.momentum == 0.1 for norm in batch_norms(model))


def test_recalibration_without_batch_norm_only_sets_the_mode():
    model, data = without_batch_norm().train(), iter(batches())
    before = state(model)
    norms.recalibrate(model, data, CPU)
    assert equal(before, state(model))
    assert not model.training
    assert len(list(data)) == 4


# Moved towards one batch's --------------------------------------------------------------------


@given(st.floats(0, 1), st.integers(2, 9), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_one_layer_goes_the_share_momentum_of_the_way(momentum, count, seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.BatchNorm2d(3)).double().eval()
    model[0].running_mean.fill_(2)
    model[0].running_var.fill_(5)
    x_NCHW = torch.randn(count, 3, 4, 5, generator=generator, dtype=torch.float64)
    norms.follow(model, x_NCHW, momentum)
    mean_C, var_C = x_NCHW.mean((0, 2, 3)), x_NCHW.var((0, 2, 3))
    torch.testing.assert_close(model[0].running_mean, (1 - momentum) * 2 + momentum * mean_C)
    torch.testing.assert_close(model[0].running_var, (1 - momentum) * 5 + momentum * var_C)


@pytest.mark.parametrize("arch", ["preact_resnet", "resnet"])
def test_every_layer_makes_the_update_of_torch(arch):
    model, other = tiny_model(arch=arch), tiny_model(arch=arch)
    ((x_NCHW, _),) = batches(1)
    norms.follow(model, x_NCHW, 0.3)
    for norm in batch_norms(other):
        norm.momentum = 0.3
    with torch.no_grad():
        other.train()(x_NCHW)
    assert equal(state(model), state(other))
    assert not equal(state(model), state(tiny_model(arch=arch)))


@pytest.mark.parametrize("kept", [0.37, None])
def test_momentum_and_mode_come_back(kept):
    model = tiny_model()
    batch_norms(model)[1].momentum = kept
    before = [norm.momentum for norm in batch_norms(model)]
    norms.follow(model, batches(1)[0][0], 0.5)
    assert [norm.momentum for norm in batch_norms(model)] == before
    assert not any(module.training for module in model.modules())


def test_momentum_and_mode_come_back_after_an_error():
    model = tiny_model()
    with pytest.raises(RuntimeError):
        norms.follow(model, torch.rand(4, 5, SIZE, SIZE), 0.5)
    assert {norm.momentum for norm in batch_norms(model)} == {0.1}
    assert not any(module.training for module in model.modules())


def test_following_changes_no_parameter_and_leaves_other_layers_in_evaluation_mode():
    model = tiny_model()
    model.net.insert(len(model.net) - 1, nn.Dropout(0.9))
    model.eval()
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    modes = []
    model.net[-2].register_forward_pre_hook(lambda layer, _: modes.append(layer.training))
    norms.follow(model, batches(1)[0][0], 0.5)
    assert modes == [False]
    assert equal(parameters, dict(model.named_parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_models_without_batch_norm_are_left_alone():
    model = copy.deepcopy(without_batch_norm()).eval()
    before, calls = state(model), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    norms.follow(model, batches(1)[0][0], 0.5)
    assert equal(before, state(model))
    assert not calls


def test_batch_norms_that_keep_no_statistics_are_left_alone():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3)).eval()
    model[0].momentum = 0.2
    norms.follow(model, batches(1)[0][0], 0.5)
    assert model[0].momentum == 0.2
    assert model[0].running_mean is None
    assert not torch.equal(model[1].running_var, torch.ones(3))
