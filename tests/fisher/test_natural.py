"""One step of natural-gradient descent against dense linear algebra in float64."""

import contextlib

import pytest
import torch
from conftest import SIZE, tiny_model
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot

from ngf import device
from ngf.errors import InputError
from ngf.fisher import along, natural
from ngf.fisher.along import fisher_along
from ngf.fisher.diagonal import fisher_diagonal, tuned_parameters
from ngf.training import Batches


def dense_fisher(model, x_NCHW, names) -> torch.Tensor:
    """The definition: E over images, exact expectation over labels, of g g^T."""
    parameters = dict(model.named_parameters())
    p_NC = model(x_NCHW).softmax(1).detach()
    total = 0
    for x_CHW, p_C in zip(x_NCHW, p_NC, strict=True):
        for label, weight in enumerate(p_C):
            loss = cross_entropy(model(x_CHW[None]), torch.tensor([label]))
            gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
            flat = torch.cat([g.flatten() for g in gradients])
            total = total + weight * torch.outer(flat, flat) / len(x_NCHW)
    return total


def flatten(named) -> torch.Tensor:
    return torch.cat([value.flatten() for value in named.values()])


@pytest.fixture
def tiny_reach(monkeypatch):
    """No kink of the network lies within it; float64 bears it."""
    monkeypatch.setattr(along, "REACH", 1e-7)


def test_fisher_along_a_direction_equals_the_dense_quadratic_form(tiny_reach):
    model = tiny_model().double()
    x_NCHW = torch.rand(4, 3, SIZE, SIZE, dtype=torch.float64)
    names = list(tuned_parameters(model))
    direction = {name: torch.randn_like(p) for name, p in tuned_parameters(model).items()}
    v = flatten(direction)
    expected = v @ dense_fisher(model, x_NCHW, names) @ v
    torch.testing.assert_close(fisher_along(model, x_NCHW, direction), expected, rtol=1e-5, atol=0)


def test_single_precision_and_kinks_cost_it_little():
    model, x_NCHW = tiny_model(), torch.rand(64, 3, SIZE, SIZE)
    direction = {name: torch.randn_like(p) for name, p in tuned_parameters(model).items()}
    names, v = list(direction), flatten(direction).double()
    expected = v @ dense_fisher(model.double(), x_NCHW.double(), names) @ v
    found = fisher_along(model.float(), x_NCHW, direction)
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0)


def test_the_model_is_left_as_it_was():
    model, x_NCHW = tiny_model(), torch.rand(4, 3, SIZE, SIZE)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = fisher_along(model, x_NCHW, tuned_parameters(model))
    assert not found.requires_grad
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_step_minimises_the_quadratic_model_along_its_direction(tiny_reach):
    model = tiny_model().double()
    x_NCHW = torch.rand(4, 3, SIZE, SIZE, dtype=torch.float64)
    parameters = tuned_parameters(model)
    gradient = {name: torch.randn_like(p) for name, p in parameters.items()}
    fisher = {name: torch.rand_like(p) for name, p in parameters.items()}
    held = {name: torch.rand_like(p) for name, p in parameters.items()}
    move = flatten(natural._step(model, x_NCHW, gradient, fisher, held))
    direction = flatten(gradient) / (flatten(fisher) + flatten(held))
    torch.testing.assert_close(move / move.norm(), direction / direction.norm())
    matrix = dense_fisher(model, x_NCHW, list(parameters)) + torch.diag(flatten(held))

    def modelled(a):
        return -a * flatten(gradient) @ move + 0.5 * a**2 * move @ matrix @ move

    assert modelled(1) < min(modelled(0.99), modelled(1.01))


@pytest.mark.parametrize(("count", "every"), [(63, 1), (127, 1), (128, 2), (200, 3)])
def test_images_evenly_picked_measure_the_length_of_a_large_step(tiny_reach, count, every):
    """At least MEASURED of them; the first ones of a batch are not like the last ones."""
    assert natural.MEASURED == 64
    model = tiny_model().double()
    x_NCHW = torch.rand(count, 3, SIZE, SIZE, dtype=torch.float64)
    gradient = {name: torch.randn_like(p) for name, p in tuned_parameters(model).items()}
    one, none = (
        {name: fill(v) for name, v in gradient.items()}
        for fill in (torch.ones_like, torch.zeros_like)
    )
    move = flatten(natural._step(model, x_NCHW, gradient, one, none))
    length = flatten(gradient) @ flatten(gradient) / fisher_along(model, x_NCHW[::every], gradient)
    torch.testing.assert_close(move, length * flatten(gradient))


def tune(model, monkeypatch, **rule):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)
    x_NHWC = torch.randint(0, 256, (24, SIZE, SIZE, 3), dtype=torch.uint8)
    batches = Batches(x_NHWC, torch.arange(24) % 3, size=24, shift=0, flip=False, seed=0)

    def loss():
        with torch.no_grad():
            x_NCHW, y_N = next(batches.take(1))
            return cross_entropy(model(x_NCHW), y_N).item()

    before = loss()
    chosen = natural.Rule(**{"lr": 0.5, "eta": 0.0, "damping": 0.1, **rule})
    natural.descend(model, batches, steps=8, views=1, rule=chosen, generator=torch.Generator())
    return before, loss()


def test_a_heavy_anchor_holds_what_the_clean_data_determines(monkeypatch):
    """The anchor's curvature is in the solve: with eta going to infinity, F0 lets nothing move."""

    def moved(eta):
        model = tiny_model()
        start = flatten(tuned_parameters(model)).detach().clone()
        x_NHWC = torch.randint(0, 256, (24, SIZE, SIZE, 3), dtype=torch.uint8)
        batches = Batches(x_NHWC, torch.arange(24) % 3, size=24, shift=0, flip=False, seed=0)
        generator = torch.Generator().manual_seed(0)
        fisher = flatten(fisher_diagonal(model, batches.take(1), generator))
        rule = natural.Rule(lr=0.5, eta=eta, damping=0.1)
        natural.descend(model, batches, steps=4, views=1, rule=rule, generator=torch.Generator())
        return (fisher * (flatten(tuned_parameters(model)).detach() - start).square()).sum().item()

    torch.manual_seed(0)
    assert moved(1e6) < 1e-3 * moved(0.0)


def test_no_step_is_longer_than_the_radius():
    model = tiny_model()
    with torch.no_grad():
        model.net[-1].weight.mul_(100)  # sure, and wrong about random labels
    start = flatten(tuned_parameters(model)).detach().clone()
    x_NHWC = torch.randint(0, 256, (24, SIZE, SIZE, 3), dtype=torch.uint8)
    batches = Batches(x_NHWC, torch.arange(24) % 3, size=24, shift=0, flip=False, seed=0)
    rule = natural.Rule(lr=1.0, eta=0.0, damping=0.01)
    natural.descend(model, batches, steps=1, views=1, rule=rule, generator=torch.Generator())
    moved = flatten(tuned_parameters(model)).detach() - start
    assert moved.norm() <= 1.0001 * natural.RADIUS * start.norm()


@pytest.mark.parametrize("damping", [1e-2, 0.1, 1.0, 100.0])
def test_it_descends_over_four_decades_of_damping(damping, monkeypatch):
    torch.manual_seed(0)
    before, after = tune(tiny_model(), monkeypatch, damping=damping)
    assert after < before


def test_the_damping_moves_to_its_last_value():
    rule = natural.Rule(lr=0.5, eta=0.0, damping=0.1, damping_last=0.4)
    assert [rule.damping_at(step, 4) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rule.damping_at(0, 1) == 0.1
    assert natural.Rule(lr=0.5, eta=0.0, damping=0.1).damping_at(3, 4) == 0.1


def test_each_step_has_the_damping_of_its_turn(full_precision):
    """With one step the last value says nothing; with two it is the second step's."""
    one, two = ({"damping": 0.1, "damping_last": last, "steps": 1} for last in (0.1, 50.0))
    assert torch.equal(descend(tiny_model(), **one), descend(tiny_model(), **two))
    kept, moved = ({**rule, "steps": 2} for rule in (one, two))
    assert torch.equal(descend(tiny_model(), **kept), descend(tiny_model(), damping=0.1, steps=2))
    assert not torch.allclose(descend(tiny_model(), **kept), descend(tiny_model(), **moved))


def test_a_singular_fisher_is_said(monkeypatch):
    model = tiny_model()
    with torch.no_grad():  # answers are certain: no label but one can be drawn, F vanishes
        model.net[-1].weight.zero_()
        model.net[-1].bias.copy_(torch.tensor([1e4, 0, 0]))
    with pytest.raises(InputError, match=r"step 0 is not finite.*raise the damping \(now 0.1\)"):
        tune(model, monkeypatch)


# Labels that are probabilities ----------------------------------------------------------------


@pytest.fixture
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


def noise() -> Batches:
    """One batch of 24 images in every pass."""
    generator = torch.Generator().manual_seed(0)
    x_NHWC = torch.randint(0, 256, (24, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return Batches(x_NHWC, torch.arange(24) % 3, size=24, shift=0, flip=False, seed=0)


def descend(model, steps, show=contextlib.nullcontext, **rule) -> torch.Tensor:
    """The parameters that it comes to."""
    chosen = natural.Rule(**{"lr": 0.5, "eta": 0.0, "damping": 0.1, **rule})
    natural.descend(
        model, noise(), steps=steps, views=1, rule=chosen, generator=torch.Generator(), show=show
    )
    return flatten(tuned_parameters(model)).detach()


def soft_batch():
    generator = torch.Generator().manual_seed(0)
    x_NCHW = torch.rand(6, 3, SIZE, SIZE, generator=generator)
    return x_NCHW, torch.randn(6, 3, generator=generator).softmax(1)


def gradient_of(model, batch) -> torch.Tensor:
    return flatten(natural._gradient(model, tuned_parameters(model), batch))


def test_soft_labels_give_the_gradient_of_the_mean_cross_entropy(full_precision):
    """E over images of -sum_k p_k log q_k, by autograd."""
    model = tiny_model()
    x_NCHW, p_NK = soft_batch()
    loss = -(p_NK * model(x_NCHW).log_softmax(1)).sum(1).mean()
    expected = torch.autograd.grad(loss, list(tuned_parameters(model).values()))
    expected = torch.cat([part.flatten() for part in expected])
    torch.testing.assert_close(gradient_of(model, (x_NCHW, p_NK)), expected, rtol=1e-4, atol=1e-6)
    hard = gradient_of(model, (x_NCHW, p_NK.argmax(1)))
    assert (hard - expected).norm() > 0.1 * expected.norm()


def test_certain_soft_labels_are_labels(full_precision):
    model = tiny_model()
    x_NCHW, p_NK = soft_batch()
    y_N = p_NK.argmax(1)
    hard = gradient_of(model, (x_NCHW, y_N))
    soft = gradient_of(model, (x_NCHW, one_hot(y_N, 3).float()))
    torch.testing.assert_close(hard, soft, rtol=1e-4, atol=1e-6)


def test_it_descends_to_the_answers_that_it_is_shown(full_precision):
    """Half of each image's answer is its label, the other half that of the next class."""

    @contextlib.contextmanager
    def show(batch):
        x_NCHW, y_N = batch
        yield x_NCHW, (one_hot(y_N, 3) + one_hot((y_N + 1) % 3, 3)) / 2

    model, (x_NCHW, y_N) = tiny_model(), next(noise().take(1))
    with show((x_NCHW, y_N)) as wanted:
        before = cross_entropy(model(x_NCHW), wanted[1])
        descend(model, steps=20, show=show, damping=0.01)
        after = cross_entropy(model(x_NCHW), wanted[1])
    assert after < before
    p_NK, rows = model(x_NCHW).softmax(1), torch.arange(len(y_N))
    assert p_NK[rows, (y_N + 1) % 3].mean() > 1.3 * p_NK[rows, (y_N + 2) % 3].mean()


# Plain gradient descent -----------------------------------------------------------------------


def test_identity_goes_along_the_gradient(full_precision):
    start = flatten(tuned_parameters(tiny_model())).detach()
    downhill = -gradient_of(tiny_model(), next(noise().take(1)))
    plain = descend(tiny_model(), steps=1, fisher="identity") - start
    assert cosine_similarity(plain, downhill, dim=0) > 0.9999
    other = descend(tiny_model(), steps=1, fisher="diagonal") - start
    assert cosine_similarity(other, downhill, dim=0) < 0.95


def test_identity_is_anchored_by_the_mean_of_the_diagonal(full_precision):
    """The second step goes along g + eta mean(F) (theta - theta0)."""
    model, eta = tiny_model(), 30.0
    start = flatten(tuned_parameters(model)).detach().clone()
    mean = flatten(fisher_diagonal(model, noise().take(1), torch.Generator())).mean()
    options = {"fisher": "identity", "eta": eta, "lr": 1.0}
    first = descend(model, steps=1, **options).clone()
    gradient = gradient_of(model, next(noise().take(1)))
    second = descend(tiny_model(), steps=2, **options)
    anchored = -(gradient + eta * mean * (first - start))
    assert cosine_similarity(second - first, anchored, dim=0) > 0.9999
    assert cosine_similarity(second - first, -gradient, dim=0) < 0.99


def test_the_length_along_the_gradient_is_the_exact_one(full_precision):
    """a = g^T v / v^T (F* + (eta + damping) mean(F)) v, for v = g."""
    model = tiny_model()
    start = flatten(tuned_parameters(model)).detach().clone()
    mean = flatten(fisher_diagonal(model, noise().take(1), torch.Generator())).mean()
    batch = next(noise().take(1))
    named = natural._gradient(model, tuned_parameters(model), batch)
    g = flatten(named)
    curvature = fisher_along(model, batch[0], named) + (0.2 + 50) * mean * g.square().sum()
    moved = descend(model, steps=1, fisher="identity", lr=0.5, eta=0.2, damping=50.0) - start
    expected = -0.5 * g.square().sum() / curvature * g
    assert expected.norm() < 0.5 * natural.RADIUS * start.norm()
    torch.testing.assert_close(moved, expected, rtol=1e-2, atol=1e-6)


def test_the_diagonal_is_the_default():
    assert natural.Rule(0.5, 0.0, 0.1) == natural.Rule(0.5, 0.0, 0.1, "diagonal")


def test_an_unknown_fisher_is_said_with_those_that_there_are():
    with pytest.raises(InputError, match="unknown fisher 'kfac': there is diagonal, identity"):
        natural.Rule(0.5, 0.0, 0.1, "kfac")


@pytest.mark.parametrize("layers", ["norms+head", "norms", "head"])
def test_only_the_layers_of_the_rule_change(layers):
    model, fresh = tiny_model(), tiny_model()
    rule = natural.Rule(lr=0.5, eta=0.1, damping=0.1, layers=layers)
    tuned = natural.descend(
        model, noise(), steps=2, views=1, rule=rule, generator=torch.Generator()
    )
    after = dict(model.named_parameters())
    changed = {name for name, p in fresh.named_parameters() if not torch.equal(p, after[name])}
    assert changed == set(tuned_parameters(fresh, layers))
    assert tuned == sum(after[name].numel() for name in changed)


def test_the_parts_are_the_whole():
    norms, linear = (set(tuned_parameters(tiny_model(), part)) for part in ("norms", "head"))
    assert norms | linear == set(tuned_parameters(tiny_model()))
    assert not norms & linear
    assert len(linear) == 2


def test_layers_that_the_model_lacks_are_said():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 3))
    rule = natural.Rule(lr=0.5, eta=0.1, damping=0.1, layers="norms")
    with pytest.raises(InputError, match="no batch norm, so layers 'norms' tunes nothing"):
        natural.descend(model, noise(), steps=1, views=1, rule=rule, generator=torch.Generator())
