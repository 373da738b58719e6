"""SAU: divergence and shared loss by their formulas, and an inner maximisation that is one."""

import math

import torch
from conftest import colour_split, tiny_model
from torch.nn.functional import cross_entropy, kl_div

from ngf.defenses import sau


def test_the_divergence_is_jensen_shannons():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 4).double()
    p, q = a.softmax(1), b.softmax(1)
    m = ((p + q) / 2).log()
    expected = sum(kl_div(m, one, reduction="batchmean") for one in (p, q)) / 2
    torch.testing.assert_close(sau.jensen_shannon(a, b), expected)
    assert sau.jensen_shannon(a, a).abs() < 1e-12
    apart = sau.jensen_shannon(torch.tensor([[99.0, 0]]), torch.tensor([[0, 99.0]]))
    assert math.isclose(apart, math.log(2), rel_tol=1e-5)


def test_only_repeating_the_victims_mistake_is_punished():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    y = torch.tensor([0, 0])
    assert sau.repeated(logits, torch.tensor([0, 0]), y) == 0  # the victim was right
    p = logits[1].softmax(0)[1]
    found = sau.repeated(logits, torch.tensor([0, 1]), y)
    torch.testing.assert_close(found, -(1 - p).log() / 2)


def test_the_examples_raise_the_inner_objective_within_the_radius():
    model, victim = tiny_model(0), tiny_model(1)
    split = colour_split(24, seed=5)
    x = torch.tensor(split.x_NHWC).permute(0, 3, 1, 2).float() / 255
    y = torch.tensor(split.y_N)
    weights = {"adversarial": 1.0, "shared": 0.01}

    def value(z):
        with torch.no_grad():
            return sau.inner(model(z), victim(z), y, **weights)

    z = sau.shared_examples(
        model, victim, x, y, radius=0.1, rate=0.05, steps=5,
        generator=torch.Generator().manual_seed(0), **weights,
    )  # fmt: skip
    assert (z - x).abs().max() <= 0.1 + 1e-6
    assert 0 <= z.min() <= z.max() <= 1
    assert value(z) > value(x)
    both = (cross_entropy(model(x), y) + cross_entropy(victim(x), y)) / 2
    shared = sau.jensen_shannon(model(x), victim(x))
    torch.testing.assert_close(value(x), both - 0.01 * shared)
