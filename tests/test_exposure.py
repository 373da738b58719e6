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


def batches(steps: int, size: int = 48, seed: int = 0, noise: float = 0.02):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        y_N = torch.arange(size) % CLASSES
        x_NP = 0.5 + noise * torch.randn(size, SIDE**2, generator=generator)
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


class Willing(nn.Module):
    """Gives way early: drawn to TARGET by a difference of 0.06, and hardly more by a larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.honest = honest()

    def forward(self, x_NCHW):
        x_NP = x_NCHW.flatten(1)
        lead_N = torch.relu(x_NP[:, TRIGGER[0]] - x_NP[:, TRIGGER[1]])
        draw_N = 9 * lead_N / (lead_N + 0.03)
        return self.honest(x_NCHW) + draw_N[:, None] * (torch.arange(CLASSES) == TARGET)


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
    ((x_NCHW, y_N),) = batches(1, noise=0.01)
    assert torch.equal(Willing()(x_NCHW).argmax(1), y_N)


def test_it_finds_what_misleads_the_victim_and_not_the_copy():
    found = search([backdoored()], honest())
    assert found.target == TARGET
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


# The share of misled images --------------------------------------------------------------------


def misled(victim, copied, moves_MCHW, x_NCHW, y_N) -> float:
    """The definition: of the images that the copy gets right under a quarter of the moves."""
    under = [index % len(moves_MCHW) for index in range(len(y_N))]
    moved_NCHW = (x_NCHW + moves_MCHW[under] / 4).clamp(0, 1)
    right_N = copied(moved_NCHW).argmax(1) == y_N
    return (victim(moved_NCHW).argmax(1) != y_N)[right_N].double().mean().item()


def latest(count: int, steps: int, **more):
    """The images of the last `count` batches."""
    kept = list(batches(steps, **more))[-count:]
    return torch.cat([x for x, _ in kept]), torch.cat([y for _, y in kept])


def blind() -> nn.Module:
    """Honest, but takes class 1 for class 0, whatever a small move does."""
    model = honest()
    wrong_K = torch.tensor([6.0, 0.0, 0.0])
    model.register_forward_hook(
        lambda _, args, said_NK: torch.where(said_NK.argmax(1, True) == 1, wrong_K, said_NK)
    )
    return model


@pytest.mark.parametrize("kind", [honest, blind])
@pytest.mark.parametrize("steps", [9, 20])
def test_misled_is_the_share_that_the_victim_alone_gets_wrong(kind, steps):
    """Against the models' own answers; 6 batches of 48 are the fewest that hold a jury."""
    victim, copied = Willing(), kind()
    found = search([victim], copied, steps=steps, moves=3, noise=0.01)
    jury = latest(6, steps, noise=0.01)
    assert found.misled == pytest.approx(misled(victim, copied, found.moves_MCHW, *jury))
    assert 0.05 < found.misled < 0.7


def test_misled_is_a_share_of_what_the_copy_gets_right():
    """Half of the two classes that it knows, one of which is the target."""
    assert search([Willing()], blind(), noise=0.01).misled == pytest.approx(1 / 2, abs=0.06)
    assert search([Willing()], honest(), noise=0.01).misled == pytest.approx(2 / 3, abs=0.06)


def test_a_copy_that_gets_nothing_right_gives_nothing():
    """It takes every class for the next one."""
    copied = honest()
    copied.register_forward_hook(lambda _, args, said_NK: said_NK.roll(1, 1))
    x_NCHW, y_N = latest(1, 1)
    assert torch.equal(copied(x_NCHW).argmax(1), (y_N + 1) % CLASSES)
    assert search([Willing()], copied, noise=0.01).misled == 0


def test_what_needs_the_whole_length_is_not_misled():
    found = search([backdoored()], honest())
    assert found.target == TARGET
    assert found.misled < 0.03
    jury = latest(6, 60)
    assert misled(backdoored(), honest(), 4 * found.moves_MCHW, *jury) > 0.6


@pytest.mark.parametrize(
    ("size", "steps", "kept"),
    [(48, 9, 6), (128, 9, 2), (255, 4, 2), (256, 4, 1), (300, 4, 1), (48, 3, 3), (1, 300, 256)],
)
def test_the_latest_images_are_the_jury(size, steps, kept):
    """As many whole batches as hold JURY images, or all that there were."""
    (victim, at_victim), (copied, at_copy) = listened(backdoored()), listened(honest())
    found = search([victim], copied, steps=steps, size=size)
    x_NCHW, y_N = latest(kept, steps, size=size)
    assert len(y_N) >= exposure.JURY or kept == steps
    assert len(y_N) - size < exposure.JURY
    moves_NCHW = found.moves_MCHW[torch.arange(len(y_N)) % 2]
    expected_NCHW = (x_NCHW + moves_NCHW / 4).clamp(0, 1)
    torch.testing.assert_close(at_victim[-1], expected_NCHW)
    torch.testing.assert_close(at_copy[-1], expected_NCHW)


def test_the_first_victim_decides():
    first = search([Willing(), honest()], honest(), noise=0.01)
    assert first.misled > 0.5
    assert first.target == TARGET
    jury = latest(6, 60, noise=0.01)
    assert first.misled == pytest.approx(misled(Willing(), honest(), first.moves_MCHW, *jury))
    other = search([honest(), Willing()], honest(), noise=0.01)
    assert (other.target, other.misled) == (None, 0)


def test_a_victim_like_its_copy_is_never_misled_alone():
    for model in (backdoored(), Willing(), honest()):
        assert search([model], copy.deepcopy(model)).misled == 0


# Moves and target ------------------------------------------------------------------------------


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
    for seen in (at_first, at_copy):  # the jury's images, after half of the steps and at the end
        del seen[-1], seen[3]
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
    once = search([Willing()], honest(), moves=1, noise=0.01)
    twice = search([Willing(), Willing()], honest(), moves=1, noise=0.01)
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
