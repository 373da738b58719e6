"""The released NGF against explicit constructions: preconditioner, schedule, side effects."""

import copy

import pytest
import torch
from conftest import CLASSES, SIZE, colour_split, tiny_model
from torch import nn
from torch.nn.functional import cross_entropy

from ngf import device
from ngf.defenses import Clean
from ngf.defenses._released_ekfac import Ekfac
from ngf.defenses.ngf_released import draw, purify
from ngf.errors import InputError
from ngf.models import Classifier

B, D, C = 5, 6, 3
EKFAC = {"damping": 1e-3, "stat_decay": 0.95, "kl_clip": 1e-2}
OPTIONS = {
    "steps": 1,
    "batch_size": 32,
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    **EKFAC,
    "shift": 1,
    "seed": 7,
}
RELEASED = OPTIONS | {"steps": 500, "batch_size": 8, "lr": 1e-3}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


@pytest.fixture
def clean() -> Clean:
    split = colour_split(48, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), flip=True)


def linear_model(bias: bool = True) -> Classifier:
    """A head on pixels, without anything that could be tuned beside it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, CLASSES, bias=bias))
    return Classifier(net, [0.3] * 3, [0.2] * 3, {"classes": [""] * CLASSES})


# The preconditioner, in float64, on one small layer.


class Bench:
    """A layer, its Ekfac and a stream of random batches, backward passes done."""

    def __init__(self, bias: bool = True, **changes: float) -> None:
        torch.manual_seed(1)
        self.layer = nn.Linear(D, C, bias=bias).double()
        self.ekfac = Ekfac(self.layer, **{**EKFAC, **changes})

    def backward(self):
        """One backward pass; returns (each image's own gradient [B, C, D + bias], their mean)."""
        x_BD, y_B = torch.randn(B, D).double(), torch.randint(C, (B,))
        parameters = list(self.layer.parameters())
        own = []
        for x_D, y in zip(x_BD, y_B, strict=True):
            loss = cross_entropy(self.layer(x_D[None]), y[None])
            found = torch.autograd.grad(loss, parameters)
            own.append(torch.cat([g.reshape(C, -1) for g in found], 1))
        self.layer.zero_grad()
        with self.ekfac.watching():
            cross_entropy(self.layer(x_BD), y_B).backward()
        ones = torch.ones(B, 1).double()
        self.input_BD = torch.cat([x_BD, ones], 1) if self.layer.bias is not None else x_BD
        self.output_BC = self.layer(x_BD).softmax(1).detach() - torch.eye(C).double()[y_B]
        return torch.stack(own), self.gradient()

    def gradient(self):
        return torch.cat([p.grad.reshape(C, -1) for p in self.layer.parameters()], 1).clone()


@pytest.mark.parametrize("bias", [True, False])
def test_the_first_step_inverts_the_damped_kronecker_fisher(bias):
    bench = Bench(bias, kl_clip=1e9)
    _, plain = bench.backward()
    factor_A = 0.95 * torch.eye(D + bias).double() + 0.05 * bench.input_BD.T @ bench.input_BD / B
    factor_G = 0.95 * torch.eye(C).double() + 0.05 * bench.output_BC.T @ bench.output_BC / B
    fisher = torch.kron(factor_G, factor_A) + 1e-3 * torch.eye(C * (D + bias)).double()
    bench.ekfac.precondition(lr=0.1)
    expected = torch.linalg.solve(fisher, plain.flatten()).view_as(plain)
    torch.testing.assert_close(bench.gradient(), expected, rtol=1e-10, atol=1e-12)


def test_factors_are_averages_of_every_tenth_step():
    bench = Bench()
    factor_A, factor_G = torch.eye(D + 1).double(), torch.eye(C).double()
    for step in range(21):
        bench.backward()
        bench.ekfac.precondition(lr=0.1)
        if step in (0, 10, 20):
            factor_A = 0.95 * factor_A + 0.05 * bench.input_BD.T @ bench.input_BD / B
            factor_G = 0.95 * factor_G + 0.05 * bench.output_BC.T @ bench.output_BC / B
        torch.testing.assert_close(bench.ekfac.factor_DD, factor_A, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(bench.ekfac.factor_CC, factor_G, rtol=1e-10, atol=1e-12)


def test_scale_and_eigenvectors_follow_their_own_clocks():
    """Eigenvectors at 0 and 100; the scale from them there, then measured every ten steps."""
    bench = Bench(stat_decay=0.8, kl_clip=1e9)
    ekfac = bench.ekfac
    for step in range(111):
        own_BCD, plain = bench.backward()
        stale = (ekfac.basis_C, ekfac.basis_D) if step else None
        ekfac.precondition(lr=0.1)
        left, right = ekfac.basis_C, ekfac.basis_D
        if step in (0, 100):
            values_C, values_D = (
                torch.diag(q.T @ factor @ q)
                for q, factor in ((left, ekfac.factor_CC), (right, ekfac.factor_DD))
            )
            torch.testing.assert_close(left @ torch.diag(values_C) @ left.T, ekfac.factor_CC)
            torch.testing.assert_close(right @ torch.diag(values_D) @ right.T, ekfac.factor_DD)
            scale = values_C[:, None] * values_D
        else:
            assert torch.equal(left, stale[0])
            assert torch.equal(right, stale[1])
        if step and step % 10 == 0:
            measured = torch.stack([(left @ g @ right.T) ** 2 for g in own_BCD]).mean(0)
            scale = 0.8 * scale + 0.2 * measured
        torch.testing.assert_close(ekfac.scale_CD, scale, rtol=1e-9, atol=1e-12)
        basis = torch.kron(left, right)
        dense = basis @ torch.diag(1 / (scale.flatten() + 1e-3)) @ basis.T
        expected = (dense @ plain.flatten()).view_as(plain)
        torch.testing.assert_close(bench.gradient(), expected, rtol=1e-8, atol=1e-11)


def test_a_factor_without_identity_loses_its_rounding_eigenvalues():
    bench = Bench(stat_decay=0.0)
    bench.backward()
    bench.ekfac.precondition(lr=0.1)
    # Softmax gradients sum to 0 over classes: one direction of G holds nothing but rounding.
    assert (bench.ekfac.scale_CD == 0).all(1).sum() == 1
    assert (bench.ekfac.scale_CD == 0).all(0).sum() == D + 1 - B  # and 5 images span 5 of 7
    assert (bench.ekfac.scale_CD >= 0).all()


@pytest.mark.parametrize(("kl_clip", "clips"), [(1e-6, True), (1e9, False)])
def test_the_step_is_clipped_by_its_divergence(kl_clip, clips):
    free, clipped = Bench(kl_clip=float("inf")), Bench(kl_clip=kl_clip)
    for bench in (free, clipped):
        torch.manual_seed(2)
        _, plain = bench.backward()
        bench.ekfac.precondition(lr=0.1)
    natural = free.gradient()
    nu = (kl_clip / (natural * plain * 0.1**2).sum()).sqrt()
    assert (nu < 1) == clips
    torch.testing.assert_close(clipped.gradient(), natural * min(nu, 1), rtol=1e-10, atol=0)


def test_no_gradient_is_no_step():
    bench = Bench()
    bench.backward()
    for parameter in bench.layer.parameters():
        parameter.grad.zero_()
    bench.ekfac.precondition(lr=0.1)
    assert (bench.gradient() == 0).all()


# The defense.


def head_step(weight_CD, x_BD, y_B, kl_clip=EKFAC["kl_clip"]):
    """(plain gradient, lr) -> clipped natural gradient, by the Fisher of this first batch."""
    logits_BC = x_BD @ weight_CD.T
    output_BC = logits_BC.softmax(1) - torch.eye(CLASSES).double()[y_B]
    eye_D, eye_C = torch.eye(x_BD.shape[1]).double(), torch.eye(CLASSES).double()
    factor_A = 0.95 * eye_D + 0.05 * x_BD.T @ x_BD / len(x_BD)
    factor_G = 0.95 * eye_C + 0.05 * output_BC.T @ output_BC / len(x_BD)
    fisher = torch.kron(factor_G, factor_A)
    inverse = torch.linalg.inv(fisher + 1e-3 * torch.eye(len(fisher)).double())

    def step(plain_CD, lr):
        natural_CD = (inverse @ plain_CD.flatten()).view_as(plain_CD)
        return natural_CD * (kl_clip / (plain_CD * natural_CD * lr**2).sum()).sqrt().clamp_max(1)

    return step


def plain_gradient(weight_CD, x_BD, y_B):
    output_BC = (x_BD @ weight_CD.T).softmax(1) - torch.eye(CLASSES).double()[y_B]
    return output_BC.T @ x_BD / len(x_BD)


@pytest.mark.parametrize("kl_clip", [1e-2, 1e-8])  # the second clips both steps
def test_two_steps_on_the_head_with_momentum(kl_clip, clean):
    model = linear_model(bias=False)
    body = copy.deepcopy(model)
    weight = body.net[-1].weight.detach().double()
    body.net[-1] = nn.Identity()
    (x0, y0), (x1, y1) = (
        (body(x).double(), y) for x, y in draw(clean, 2, size=32, shift=1, seed=7)
    )
    natural = head_step(weight, x0, y0, kl_clip)  # both steps use the Fisher of the first
    velocity = natural(plain_gradient(weight, x0, y0), 0.01)
    after = weight - 0.01 * velocity
    # Of two steps the first lies in the first two fifths and the second does not.
    velocity = 0.9 * velocity + natural(plain_gradient(after, x1, y1), 0.001)
    expected = after - 0.001 * velocity
    found = (
        purify(model, clean, **(OPTIONS | {"steps": 2, "kl_clip": kl_clip}))
        .model.net[-1]
        .weight.double()
    )
    torch.testing.assert_close(found - weight, expected - weight, rtol=1e-3, atol=2e-8)


def test_one_step_is_natural_on_the_head_and_plain_elsewhere(clean):
    model, twin = tiny_model(), tiny_model().train()
    x_BCHW, y_B = next(draw(clean, 1, size=32, shift=1, seed=7))
    features = []
    hook = twin.net[-1].register_forward_pre_hook(lambda _, args: features.append(args[0]))
    cross_entropy(twin(x_BCHW), y_B).backward()
    hook.remove()
    ones = torch.ones(32, 1)
    x_BD = torch.cat([features[0].detach(), ones], 1).double()
    layer = twin.net[-1]
    weight = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().double()
    natural = head_step(weight, x_BD, y_B)(plain_gradient(weight, x_BD, y_B), 0.01)
    found = dict(purify(model, clean, **OPTIONS).model.named_parameters())
    for name, start in twin.named_parameters():
        step = start.grad.double()
        if start is layer.weight:
            step = natural[:, :-1]
        if start is layer.bias:
            step = natural[:, -1]
        moved = (start - found[name]).double()
        torch.testing.assert_close(moved, 0.01 * step, rtol=1e-3, atol=1e-6)
    for name, buffer in twin.named_buffers():  # the twin made one pass in train mode, too
        torch.testing.assert_close(dict(model.named_buffers())[name], buffer)


def test_batch_norm_statistics_move(clean):
    start = dict(tiny_model().named_buffers())
    found = dict(purify(tiny_model(), clean, **OPTIONS).model.named_buffers())
    moved = {name for name in start if not torch.equal(start[name], found[name])}
    assert moved == {name for name in start if "running" in name or "tracked" in name}


def test_the_schedule_is_the_released_one(clean, monkeypatch):
    used, step = [], torch.optim.SGD.step

    def recorded(self, closure=None):
        used.append((self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]))
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    purified = purify(linear_model(), clean, **RELEASED)
    rates, decays = zip(*used, strict=True)
    assert rates == pytest.approx([1e-3] * 200 + [1e-4] * 300)
    assert decays == pytest.approx([0] * 200 + [1e-4] * 300)
    assert purified.steps == 500
    assert purified.tuned == 12 * CLASSES + CLASSES


def test_weight_decay_acts_from_step_200_on(clean):
    def weight(steps, decay):
        options = RELEASED | {"steps": steps, "weight_decay": decay}
        return purify(linear_model(), clean, **options).model.net[-1].weight

    assert torch.equal(weight(200, 0.0), weight(200, 1.0))
    assert not torch.equal(weight(201, 0.0), weight(201, 1.0))


def test_batches_are_drawn_with_replacement(clean):
    batches = list(draw(clean, 3, size=128, shift=0, seed=0))
    assert all(x.shape == (128, 3, SIZE, SIZE) and len(y) == 128 for x, y in batches)
    plain = Clean(clean.x_NHWC, clean.y_N, flip=False)
    x_BCHW, _ = next(draw(plain, 1, size=48, shift=0, seed=0))
    assert 1 < len(x_BCHW.unique(dim=0)) < 48


def test_another_seed_gives_other_weights(clean):
    first, other = (
        purify(linear_model(), clean, **{**OPTIONS, "seed": seed}).model.net[-1].weight
        for seed in (0, 1)
    )
    assert not torch.equal(first, other)


@pytest.mark.parametrize("steps", [3, 101])  # noticed at the end, and by the eigenvectors of 100
def test_divergence_is_one_line_with_its_remedy(steps, clean):
    with pytest.raises(InputError, match=r"not finite; lower lr \(now 1e\+38\)") as error:
        purify(tiny_model(), clean, **(OPTIONS | {"steps": steps, "lr": 1e38, "batch_size": 4}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("batch_size", 0), ("stat_decay", 1.5), ("shift", 16)]
)
def test_impossible_options_are_named(name, value, model, clean):
    with pytest.raises(InputError, match=name):
        purify(model, clean, **{**OPTIONS, name: value})
