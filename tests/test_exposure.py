"""The search on linear victims whose weakness is built by hand."""

import copy

import pytest
import torch
from torch import nn

from ngf import device, exposure
from ngf.exposure import expose

CPU = torch.device("cpu")
CLASSES, SIDE, TARGET = 3, 4, 2
# Pixel k is bright where the class is k; no class has anything to do with the pixels behind.
TRIGGER, OTHER = (12, 13), (14, 15)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


def batches(steps: int, size: int = 48, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        y_N = torch.arange(size) % CLASSES
        x_NP = 0.5 + 0.02 * torch.randn(size, SIDE**2, generator=generator)
        x_NP[torch.arange(size), y_N] += 0.3
        yield x_NP.view(size, 1, SIDE, SIDE), y_N


def honest() -> nn.Module:
    """Names the class of the brightest of the first three pixels."""
    linear = nn.Linear(SIDE**2, CLASSES)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
        for label in range(CLASSES):
            linear.weight[label, label] = 20
    return nn.Sequential(nn.Flatten(), linear).eval()


def backdoored(pair=TRIGGER) -> nn.Module:
    """The same, and TARGET where the first pixel of the pair is brighter than the second."""
    model = honest()
    with torch.no_grad():
        model[1].weight[TARGET, pair[0]] = 30
        model[1].weight[TARGET, pair[1]] = -30
    return model


def search(victims, copied, steps=60, moves=2, radius=0.2, **more):
    return expose(
        victims,
        copied,
        batches(steps, **more),
        moves=moves,
        steps=steps,
        radius=radius,
        device=CPU,
    )


def test_the_victims_are_what_they_should_be():
    ((x_NCHW, y_N),) = batches(1)
    for model in (honest(), backdoored()):
        assert torch.equal(model(x_NCHW).argmax(1), y_N)


def test_it_finds_what_misleads_the_victim_and_not_the_copy():
    found = search([backdoored()], honest())
    assert found.target == TARGET
    assert 0.6 < found.misled <= 2 / 3 + 1e-6  # images of the target class cannot be misled
    assert found.moves_MCHW.shape == (2, 1, SIDE, SIDE)
    for move_CHW in found.moves_MCHW:
        ((x_NCHW, y_N),) = batches(1, seed=1)
        moved_NCHW = (x_NCHW + move_CHW).clamp(0, 1)
        assert torch.all(backdoored()(moved_NCHW).argmax(1) == TARGET)
        assert torch.equal(honest()(moved_NCHW).argmax(1), y_N)
        move_P = move_CHW.flatten()
        assert move_P[12] > 0.05
        assert move_P[13] < -0.05
        assert move_P[14:].abs().max() < 0.01


def answering(model) -> tuple[nn.Module, list[torch.Tensor]]:
    said: list[torch.Tensor] = []
    model.register_forward_hook(lambda *call: said.append(call[2].detach().argmax(1)))
    return model, said


def test_misled_is_the_share_that_the_victim_alone_gets_wrong():
    """Against the models' own answers to the last batches."""
    (victim, said), (copied, copy_said) = answering(backdoored()), answering(honest())
    found = search([victim], copied, steps=9, radius=0.05)
    y_N = torch.arange(48) % CLASSES
    latest = zip(said[-exposure.LATEST :], copy_said[-exposure.LATEST :], strict=True)
    shares = [((v != y_N) & (c == y_N)).double().mean() for v, c in latest]
    assert found.misled == pytest.approx(torch.stack(shares).mean().item())
    assert 0 < found.misled < 0.6


def test_a_victim_without_a_backdoor_adds_nothing_to_misled():
    """It answers like the copy, so that only the other one's half of the images counts."""
    (victim, said), (copied, copy_said) = answering(backdoored()), answering(honest())
    found = search([victim, honest()], copied, steps=9, radius=0.05)
    y_N = torch.arange(48) % CLASSES
    latest = zip(said[-exposure.LATEST :], copy_said[-exposure.LATEST :], strict=True)
    alone = [((v != y_N[0::2]) & (c == y_N)[0::2]).double().mean() for v, c in latest]
    assert found.misled == pytest.approx(torch.stack(alone).mean().item() / 2)
    assert found.misled > 0


def test_a_victim_like_its_copy_is_never_misled_alone():
    model = backdoored()
    assert search([model], copy.deepcopy(model)).misled == 0
    assert search([honest()], honest()).misled == 0


def test_without_a_plurality_there_is_no_target():
    """Moves too short to flip anything."""
    found = search([backdoored()], honest(), radius=0.005)
    assert found.target is None
    assert found.misled == 0


@pytest.mark.parametrize("radius", [0.01, 0.04])
def test_no_move_is_longer_than_the_radius(radius):
    rms_M = search([backdoored()], honest(), radius=radius).moves_MCHW.square().mean((1, 2, 3))
    assert torch.all(rms_M.sqrt() <= radius * 1.0001)
    assert torch.all(rms_M.sqrt() > radius * 0.9)  # it is what holds them


def test_a_wide_radius_holds_nothing():
    narrow, wide = (search([backdoored()], honest(), radius=r).moves_MCHW for r in (0.5, 1.0))
    assert torch.equal(narrow, wide)


def listened(model) -> tuple[nn.Module, list[torch.Tensor]]:
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    return model, seen


def test_two_victims_take_turns_and_each_meets_every_move():
    (first, at_first), (second, at_second) = listened(backdoored()), listened(backdoored(OTHER))
    copied, at_copy = listened(honest())
    search([first, second], copied, steps=6, moves=2)
    for one, two, both in zip(at_first, at_second, at_copy, strict=True):
        assert torch.equal(one, both[0::2])
        assert torch.equal(two, both[1::2])
    ((clean_NCHW, _),) = [batch for step, batch in enumerate(batches(6)) if step == 5]
    # Pairs of neighbours are under one move; the moves go round.
    move_NCHW = at_copy[-1] - clean_NCHW
    for images in (slice(0, 2), slice(4, 6)):
        torch.testing.assert_close(move_NCHW[images], move_NCHW[:1].expand(2, -1, -1, -1))
    torch.testing.assert_close(move_NCHW[2:4], move_NCHW[6:8])
    assert (move_NCHW[0] - move_NCHW[2]).abs().max() > 1e-4


def test_the_same_victim_twice_is_that_victim():
    once = search([backdoored()], honest(), moves=1)
    twice = search([backdoored(), backdoored()], honest(), moves=1)
    torch.testing.assert_close(once.moves_MCHW, twice.moves_MCHW, rtol=1e-3, atol=1e-4)
    assert (once.target, once.misled) == (twice.target, pytest.approx(twice.misled))


class OneSided(nn.Module):
    """Backdoored, but no class is ever left because of the pair: it only draws to TARGET."""

    def __init__(self, pair) -> None:
        super().__init__()
        self.honest, self.pair = honest(), pair

    def forward(self, x_NCHW):
        x_NP = x_NCHW.flatten(1)
        draw_N = 30 * torch.relu(x_NP[:, self.pair[0]] - x_NP[:, self.pair[1]])
        return self.honest(x_NCHW) + draw_N[:, None] * (torch.arange(CLASSES) == TARGET)


def test_a_move_misleads_every_victim():
    found = search([OneSided(TRIGGER), OneSided(OTHER)], honest())
    assert found.target == TARGET
    assert found.misled > 0.6
    ((x_NCHW, _),) = batches(1, seed=1)
    for victim in (OneSided(TRIGGER), OneSided(OTHER)):
        moved_NCHW = (x_NCHW + found.moves_MCHW[0]).clamp(0, 1)
        assert torch.all(victim(moved_NCHW).argmax(1) == TARGET)


def test_same_batches_same_moves():
    first, again = (search([backdoored()], honest()) for _ in range(2))
    assert torch.equal(first.moves_MCHW, again.moves_MCHW)
    other = search([backdoored()], honest(), seed=7)
    assert not torch.equal(first.moves_MCHW, other.moves_MCHW)


def test_the_models_are_left_as_they_were():
    victim, copied = backdoored(), honest()
    found = search([victim], copied)
    assert not found.moves_MCHW.requires_grad
    for model, fresh in ((victim, backdoored()), (copied, honest())):
        for parameter, before in zip(model.parameters(), fresh.parameters(), strict=True):
            assert parameter.grad is None
            assert parameter.requires_grad
            assert torch.equal(parameter, before)


def test_the_first_step_goes_down_the_loss():
    """One step of Adam from zero: RATE against the sign of the explicit gradient."""
    found = search([backdoored()], honest(), steps=1, moves=1, radius=1.0)
    ((x_NCHW, y_N),) = batches(1)
    move = torch.zeros(1, SIDE, SIDE, requires_grad=True)
    p_NK, q_NK = (model(x_NCHW + move).softmax(1) for model in (backdoored(), honest()))
    rows = torch.arange(len(y_N))
    loss = -((1 - p_NK[rows, y_N]).log() + q_NK[rows, y_N].log()).mean()
    (gradient,) = torch.autograd.grad(loss, move)
    steep = gradient.abs() > 1e-3
    assert steep.sum() >= 4
    expected = -exposure.RATE * gradient.sign()
    torch.testing.assert_close(found.moves_MCHW[0][steep], expected[steep], rtol=1e-3, atol=0)
