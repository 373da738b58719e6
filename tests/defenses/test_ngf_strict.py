"""The paper's text against dense formulas in float64, and what it leaves alone."""

import copy

import pytest
import torch
from conftest import CLASSES, colour_split, tiny_model
from torch.nn.functional import cross_entropy

from ngf import device
from ngf.defenses import Clean
from ngf.defenses.ngf_strict import FISHERS, IDENTITY, purify
from ngf.errors import InputError
from ngf.models import batch_norms, head
from ngf.training import augment, pixels

N, VIEWS = 48, 2
OPTIONS = {
    "views": VIEWS,
    "steps": 1,
    "lr": 0.3,
    "eta": 0.7,
    "damping": 0.05,
    "fisher": "true",
    "recalibrate": False,
    "shift": 1,
    "seed": 7,
}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


@pytest.fixture
def clean() -> Clean:
    split = colour_split(N, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), flip=True)


def double_model():
    """A float64 model whose head is sure of some images: every Fisher is another matrix."""
    model = tiny_model().double()
    with torch.no_grad():
        head(model).weight.mul_(5)
    return model


@torch.no_grad()
def inputs(model, clean):
    """What reaches the head, a one for the bias behind it, and labels: through the network."""
    generator = torch.Generator().manual_seed(OPTIONS["seed"])
    seen = []
    hook = head(model).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for _ in range(VIEWS):
        views = augment(clean.x_NHWC, shift=1, flip=True, generator=generator)
        model(pixels(views).double())
    hook.remove()
    h_ND = torch.cat(seen)
    return torch.cat([h_ND, torch.ones(len(h_ND), 1)], 1), clean.y_N.repeat(VIEWS)


def parameters(model) -> torch.Tensor:
    return torch.cat([head(model).weight, head(model).bias[:, None]], 1).detach().clone()


def cross(h_NE, w_CE, y_N) -> torch.Tensor:
    """The gradient of the mean cross-entropy, by autograd, as one row."""
    w_CE = w_CE.clone().requires_grad_()
    (found,) = torch.autograd.grad(cross_entropy(h_NE @ w_CE.T, y_N), w_CE)
    return found.flatten()


def outputs(h_NE, w_CE) -> torch.Tensor:
    p_NC = (h_NE @ w_CE.T).softmax(1)
    return torch.diag_embed(p_NC) - p_NC[:, :, None] * p_NC[:, None, :]


def exact(h_NE, w_CE) -> torch.Tensor:
    """The true Fisher, a sum over samples of Kronecker products."""
    terms = zip(outputs(h_NE, w_CE), h_NE, strict=True)
    return sum(torch.kron(m_CC, torch.outer(h_E, h_E)) for m_CC, h_E in terms) / len(h_NE)


def empirical(h_NE, w_CE, y_N) -> torch.Tensor:
    each = [cross(h_E[None], w_CE, y[None]) for h_E, y in zip(h_NE, y_N, strict=True)]
    return sum(torch.outer(g, g) for g in each) / len(h_NE)


def ekfac(h_NE, w_CE) -> torch.Tensor:
    _, output_CC = torch.linalg.eigh(outputs(h_NE, w_CE).mean(0))
    _, input_EE = torch.linalg.eigh(h_NE.T @ h_NE / len(h_NE))
    basis = torch.kron(output_CC, input_EE)
    return basis @ torch.diag((basis.T @ exact(h_NE, w_CE) @ basis).diagonal()) @ basis.T


DENSE = {
    "true": lambda h_NE, w_CE, _: exact(h_NE, w_CE),
    "empirical": empirical,
    "kfac": lambda h_NE, w_CE, _: torch.kron(
        outputs(h_NE, w_CE).mean(0), h_NE.T @ h_NE / len(h_NE)
    ),
    "ekfac": lambda h_NE, w_CE, _: ekfac(h_NE, w_CE),
    "diagonal": lambda h_NE, w_CE, _: torch.diag(exact(h_NE, w_CE).diagonal()),
}


def descended(fisher, h_NE, y_N, start_CE, steps) -> torch.Tensor:
    """The docstring's formulas with matrices of all parameters."""
    anchor = exact(h_NE, start_CE).diagonal()
    now_CE = start_CE
    for _ in range(steps):
        move = cross(h_NE, now_CE, y_N) + 0.7 * anchor * (now_CE - start_CE).flatten()
        if fisher != IDENTITY:
            damping = 0.05 * anchor.mean() * torch.eye(len(anchor), dtype=anchor.dtype)
            curvature = DENSE[fisher](h_NE, now_CE, y_N) + 0.7 * torch.diag(anchor) + damping
            move = torch.linalg.solve(curvature, move)
        now_CE = now_CE - 0.3 * move.view_as(now_CE)
    return now_CE


@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_steps_are_the_dense_formulas(fisher, steps, clean):
    model = double_model()
    h_NE, y_N = inputs(model, clean)
    start_CE = parameters(model)
    expected = descended(fisher, h_NE, y_N, start_CE, steps)
    purified = purify(model, clean, **{**OPTIONS, "fisher": fisher, "steps": steps})
    torch.testing.assert_close(parameters(purified.model), expected, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(expected, start_CE)
    assert (purified.tuned, purified.steps) == (start_CE.numel(), steps)


@pytest.mark.parametrize("fisher", sorted(DENSE))
@pytest.mark.parametrize("iterations", [0, 200])
def test_a_larger_head_takes_the_same_steps(fisher, iterations, clean, monkeypatch):
    """By conjugate gradients, and where they do not converge in time by the dense matrix."""
    options = {**OPTIONS, "fisher": fisher, "steps": 3}
    expected = parameters(purify(double_model(), clean, **options).model)
    monkeypatch.setattr("ngf.defenses.ngf_strict.TINY", 0)
    monkeypatch.setattr("ngf.defenses.ngf_strict.HASTE", iterations)
    found = parameters(purify(double_model(), clean, **options).model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert iterations or torch.equal(found, expected)


def test_fishers_differ(clean):
    found = [
        parameters(purify(double_model(), clean, **{**OPTIONS, "fisher": fisher}).model)
        for fisher in FISHERS
    ]
    for i, left in enumerate(found):
        assert not any(torch.allclose(left, right, rtol=1e-3) for right in found[:i])


@pytest.mark.parametrize("recalibrate", [False, True])
def test_only_the_head_changes_and_batch_norm_where_asked(recalibrate, model, clean):
    before = copy.deepcopy(model.state_dict())
    purify(model.train(), clean, **{**OPTIONS, "steps": 3, "recalibrate": recalibrate})
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layer, norms = head(model), {id(norm) for norm in batch_norms(model).values()}
    tuned = {name for name, p in model.named_parameters() if p is layer.weight or p is layer.bias}
    statistics = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if id(module) in norms
        for kind in ("running_mean", "running_var", "num_batches_tracked")
    }
    counts = {name for name in statistics if name.endswith("tracked")}
    assert changed - counts == (tuned | statistics - counts if recalibrate else tuned)
    assert recalibrate or not changed & counts
    assert not model.training


def test_recalibration_comes_before_the_features(clean):
    again = purify(tiny_model(), clean, **{**OPTIONS, "recalibrate": True, "lr": 0.0}).model
    expected = purify(again, clean, **OPTIONS).model
    found = purify(tiny_model(), clean, **{**OPTIONS, "recalibrate": True}).model
    assert torch.equal(parameters(found), parameters(expected))


def test_same_seed_same_head_and_another_seed_another(clean):
    first, again, other = (
        parameters(purify(tiny_model(), clean, **{**OPTIONS, "seed": seed}).model)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("fisher", sorted(DENSE))
def test_with_much_damping_the_step_goes_along_the_gradient(fisher, clean):
    def moved(**changes):
        model = double_model()
        start_CE = parameters(model)
        purify(model, clean, **{**OPTIONS, "lr": 1.0, **changes})
        return parameters(model) - start_CE

    natural, plain = moved(fisher=fisher, damping=1e7), moved(fisher=IDENTITY)
    cosine = (natural * plain).sum() / (natural.norm() * plain.norm())
    assert cosine == pytest.approx(1, abs=1e-6)
    assert natural.norm() < plain.norm()


def test_a_strong_anchor_holds_the_head(clean):
    def distance(eta):
        model = tiny_model()
        start_CE = parameters(model)
        purify(model, clean, **{**OPTIONS, "eta": eta, "steps": 10})
        return (parameters(model) - start_CE).norm()

    assert distance(1e3) < 0.05 * distance(0.0)


def test_steps_lower_the_loss(clean):
    model = double_model()
    h_NE, y_N = inputs(model, clean)
    before = cross_entropy(h_NE @ parameters(model).T, y_N)
    purify(model, clean, **{**OPTIONS, "steps": 10})
    assert cross_entropy(h_NE @ parameters(model).T, y_N) < before


@pytest.mark.parametrize("fisher", sorted(DENSE))
def test_a_singular_system_is_named(fisher, clean):
    with pytest.raises(InputError, match="raise the damping"):
        purify(tiny_model(), clean, **{**OPTIONS, "fisher": fisher, "eta": 0.0, "damping": 0.0})


@pytest.mark.parametrize("fisher", FISHERS)
def test_hardly_any_damping_stays_finite_or_is_named(fisher, clean):
    model = tiny_model()
    options = {**OPTIONS, "fisher": fisher, "eta": 0.0, "damping": 1e-14, "steps": 3}
    problem = None
    try:
        purify(model, clean, **options)
    except InputError as error:
        problem = str(error)
    assert problem is None or "raise the damping" in problem
    assert torch.isfinite(parameters(model)).all()


def test_large_heads_are_tuned_in_single_precision(clean, monkeypatch):
    expected = parameters(purify(tiny_model(), clean, **OPTIONS).model)
    monkeypatch.setattr("ngf.defenses.ngf_strict.SMALL", CLASSES)
    found = parameters(purify(tiny_model(), clean, **OPTIONS).model)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)


def test_the_network_sees_each_view_once(model, clean):
    images = []
    hook = model.register_forward_pre_hook(lambda _, args: images.append(len(args[0])))
    purify(model, clean, **{**OPTIONS, "steps": 5})
    hook.remove()
    assert sum(images) == VIEWS * N


def test_a_head_without_bias_is_tuned(model, clean):
    head(model).register_parameter("bias", None)
    assert purify(model, clean, **OPTIONS).tuned == head(model).weight.numel()


def test_an_unknown_fisher_is_answered_with_those_that_exist(model, clean):
    with pytest.raises(InputError, match=f"unknown fisher 'kfca': there is {', '.join(FISHERS)}"):
        purify(model, clean, **{**OPTIONS, "fisher": "kfca"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("views", 0), ("steps", 0), ("lr", -1.0), ("eta", -1.0), ("damping", -1.0), ("shift", 16)],
)
def test_impossible_options_are_named(name, value, model, clean):
    with pytest.raises(InputError, match=name):
        purify(model, clean, **{**OPTIONS, name: value})
