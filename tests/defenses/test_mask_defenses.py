"""RNP, AWM, NFT and FST: each by what its definition promises."""

import copy
import math

import pytest
import torch
from conftest import colour_split, tiny_model
from torch import nn

from ngf import device, masks
from ngf.defenses import Clean, awm, fst, nft, rnp
from ngf.defenses._steps import accuracy, batches_of, mean_loss
from ngf.models import head
from ngf.training import fit, one_cycle

N = 48


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


@pytest.fixture
def clean() -> Clean:
    split = colour_split(N, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), flip=False)


@pytest.fixture
def trained(clean):
    """A network that knows its task."""
    model = tiny_model()
    batches = batches_of(clean, batch_size=16, shift=0, seed=1)
    optimizer, schedule = one_cycle(model, steps=90, lr=0.1, momentum=0.9, weight_decay=0.0)
    fit(model, batches, epochs=30, optimizer=optimizer, scheduler=schedule, what="train")
    assert accuracy(model, clean) > 0.9
    return model


def options(name, numbers, **changes):
    return {**numbers["defenses"][name], "shift": 0, "batch_size": N, **changes}


def test_unlearning_climbs_until_hardly_an_answer_is_left(trained, clean):
    batches = batches_of(clean, batch_size=16, shift=0, seed=1)
    optimizer = torch.optim.SGD(trained.parameters(), 0.05, 0.9)
    left = rnp.unlearn(trained, clean, batches, optimizer, steps=300, until=0.2)
    assert left <= 0.2
    assert accuracy(trained, clean) == left


def test_rnp_prunes_the_victim_where_recovery_left_masks_low(trained, clean, numbers):
    """And the victim itself unlearns nothing: what is kept is as it was."""
    before = copy.deepcopy(trained.state_dict())
    found = rnp.purify(trained, clean, **options("rnp", numbers, max_drop=0.5, unlearn_lr=0.05))
    scales = {f"{name}.weight" for name in masks.neurons(trained)}
    pruned = 0
    for name, value in found.model.state_dict().items():
        if name in scales:
            assert ((value == before[name]) | (value == 0)).all()
            pruned += int(((value == 0) & (before[name] != 0)).sum())
        else:
            assert torch.equal(value, before[name])
    assert pruned == found.notes["pruned"]


def test_awms_perturbation_changes_answers_within_its_norm(trained, clean):
    x_NCHW = clean.x_NHWC.permute(0, 3, 1, 2).float() / 255
    batch = [(x_NCHW, clean.y_N)] * 5
    d_CHW = awm.perturbation(trained, batch, lr=1e5, radius=200.0)
    assert 0 < d_CHW.abs().sum() <= 200.01
    with torch.no_grad():
        own = trained(x_NCHW).argmax(1)
        before = mean_loss(trained, x_NCHW, own)
        after = mean_loss(trained, x_NCHW + d_CHW, own)
    assert after > before + 0.1


def test_awm_multiplies_convolutions_by_masks_between_0_and_1(trained, clean, numbers):
    before = copy.deepcopy(trained.state_dict())
    kinds = {f"{n}.weight" for n, m in trained.named_modules() if isinstance(m, nn.Conv2d)}
    found = awm.purify(trained, clean, **options("awm", numbers, rounds=3))
    for name, value in found.model.state_dict().items():
        if name in kinds:
            share = value / before[name]
            assert share.min() >= 0
            assert share.max() <= 1 + 1e-6
            assert share.min() < 1
        else:
            assert torch.equal(value, before[name])


def test_nfts_masks_keep_above_each_layers_bound(trained, clean, numbers):
    before = {n: one.weight.detach().clone() for n, one in masks.neurons(trained).items()}
    chosen = options("nft", numbers, steps=30, lr=5.0, penalty=0.0)
    found = nft.purify(trained, clean, **chosen)
    lowest = []
    for number, (name, one) in enumerate(masks.neurons(found.model).items(), 1):
        share = (one.weight / before[name])[before[name] != 0]
        bound = chosen["low"] * math.exp(-chosen["decay"] * number)
        assert share.min() >= bound - 1e-5
        assert share.max() <= 1 + 1e-5
        lowest.append(share.min() < bound + 0.01)
    assert any(lowest)


def test_a_penalty_keeps_masks_near_1(trained, clean, numbers):
    chosen = options("nft", numbers, steps=30, lr=0.5)
    closed = [
        nft.purify(copy.deepcopy(trained), clean, **{**chosen, "penalty": p}).notes["closed"]
        for p in (0.0, 1.0)
    ]
    assert closed[1] < 0.5 * closed[0]


def test_mixed_images_have_mixed_answers():
    x = torch.rand(6, 3, 4, 4)
    y = torch.arange(6) % 3
    found, target = nft.mixed(x, y, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(target.sum(1), torch.ones(6))
    draw = torch.Generator().manual_seed(0)
    share = torch.rand((), generator=draw)
    other = x[torch.randperm(6, generator=draw)]
    torch.testing.assert_close(found, share * x + (1 - share) * other)


def test_fst_turns_the_classifier_away_at_the_same_length(trained, clean, numbers):
    w0 = head(trained).weight.detach().clone()

    def cosine(alpha):
        chosen = options("fst", numbers, alpha=alpha, epochs=20, batch_size=16)
        w = head(fst.purify(copy.deepcopy(trained), clean, **chosen).model).weight
        torch.testing.assert_close(w.norm(), w0.norm())
        return (w * w0).sum() / w0.square().sum()

    away, plain = cosine(1.0), cosine(0.0)
    assert away < plain - 0.2
    assert away < -0.5
