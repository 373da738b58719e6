"""Batch-norm statistics, computed anew."""

import pytest
import torch
from conftest import CLASSES, SIZE, tiny_model
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
    for norm in batch_norms(other).values():
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
    assert all(norm.momentum == 0.1 for norm in batch_norms(model).values())


def test_recalibration_without_batch_norm_only_sets_the_mode():
    model, data = without_batch_norm().train(), iter(batches())
    before = state(model)
    norms.recalibrate(model, data, CPU)
    assert equal(before, state(model))
    assert not model.training
    assert len(list(data)) == 4
