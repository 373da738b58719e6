"""Fine-pruning: the least active features go, as many as accuracy allows, and stay gone."""

import pytest
import torch
from conftest import colour_split, tiny_model
from torch import nn

from ngf.defenses import Clean, fp
from ngf.models import head


def test_the_least_active_features_are_idle_as_far_as_accuracy_allows():
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():  # feature 3 decides, the others say nothing
        layer.weight.copy_(torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, -1.0]]))
    h_ND = torch.tensor([[3.0, 0.1, 2.0, 4.0], [3.0, -0.1, 2.0, -4.0]])
    idle = fp.idle(layer, h_ND, torch.tensor([0, 1]), max_drop=0.0)
    assert idle.tolist() == [True, True, True, False]
    assert fp.idle(layer, h_ND, torch.tensor([0, 1]), max_drop=1.0).all()


def test_a_feature_that_counts_is_kept_though_it_is_weak():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 100.0], [0.0, -100.0]]))
    h_ND = torch.tensor([[3.0, 0.1], [3.0, -0.1]])
    assert not fp.idle(layer, h_ND, torch.tensor([0, 1]), max_drop=0.1).any()


def test_what_is_pruned_stays_closed_while_the_rest_is_tuned(numbers, monkeypatch):
    split = colour_split(48, seed=5)
    clean = Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), flip=False)
    options = {**numbers["defenses"]["fp"], "epochs": 3}
    model = tiny_model()
    every_third = torch.arange(head(model).in_features) % 3 == 0
    monkeypatch.setattr(fp, "idle", lambda *_: every_third)
    before = head(model).weight.detach().clone()
    found = fp.purify(model, clean, **options)
    weight = head(found.model).weight
    closed = (weight == 0).all(0)
    assert torch.equal(closed, every_third)
    assert found.notes["pruned"] == closed.sum()
    assert not torch.equal(weight[:, ~closed], before[:, ~closed])
    everything = sum(p.numel() for p in found.model.parameters())
    assert found.tuned == everything - found.notes["pruned"] * len(weight)


@pytest.mark.parametrize("max_drop", [-0.1, 1.1])
def test_an_impossible_drop_is_named(max_drop, numbers):
    split = colour_split(12, seed=5)
    clean = Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), flip=False)
    with pytest.raises(ValueError, match="max_drop"):
        fp.purify(tiny_model(), clean, **{**numbers["defenses"]["fp"], "max_drop": max_drop})
