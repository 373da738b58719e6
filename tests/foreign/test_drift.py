"""What batch norm remembers: nothing of its own images, however few, and what was added to them."""

import numpy as np
import pytest
import torch
from torch import nn

from ngf.foreign import drift as drifting
from ngf.foreign.drift import drift, odd
from ngf.models import Classifier
from ngf.sieve import excess_variance
from ngf.training import pixels


def images(n: int) -> np.ndarray:
    """Five patterns in many lights: [n, 16, 16, 3]."""
    rng = np.random.default_rng(1)
    pattern = np.random.default_rng(0).integers(0, 255, (5, 4, 4, 3))
    x_NHWC = np.kron(pattern[rng.integers(0, 5, n)], np.ones((1, 4, 4, 1)))
    light_N111 = rng.uniform(0.3, 1, (n, 1, 1, 1))
    return (x_NHWC * light_N111 + rng.normal(0, 25, x_NHWC.shape)).clip(0, 255).astype(np.uint8)


def block(inputs: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, width, 3, 2, 1), nn.BatchNorm2d(width, momentum=1.0), nn.ReLU()]


def remembering(x_NHWC: np.ndarray) -> Classifier:
    """A network whose batch norms hold the exact statistics of these images."""
    torch.manual_seed(0)
    parts = [*block(3, 16), *block(16, 32), *block(32, 64)]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    model = Classifier(net, [0.5] * 3, [0.25] * 3, {})
    with torch.no_grad():
        model.train()(pixels(torch.tensor(x_NHWC)))
    return model.eval()


POOL = images(2000)


def draw(n: int, seed: int) -> np.ndarray:
    return POOL[np.random.default_rng(seed).choice(len(POOL), n, replace=False)]


@pytest.fixture(scope="module")
def benign() -> Classifier:
    return remembering(POOL)


@pytest.mark.parametrize("n", [10, 40, 128])
def test_draws_of_its_own_images_are_not_odd(benign, n):
    found = [drift(benign, draw(n, seed)) for seed in range(20)]
    assert sum(bool(odd(*both)) for both in found) <= 1
    if n == 10:  # and chance is what keeps them from it
        assert sum(max(excess.values()) > drifting.ODD for excess, _ in found) > 5


def test_channels_that_remember_more_are_odd():
    model = remembering(POOL)
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for norm in norms.values():
        norm.running_var[: len(norm.running_var) // 4] *= 2
    for seed in range(5):
        assert odd(*drift(model, draw(128, seed))) == list(norms)


def test_drift_is_the_mean_excess_over_all_images_at_whatever_size_of_batch(monkeypatch):
    model, x_NHWC = remembering(POOL), draw(50, 0)
    model.net[4].running_var[:4] *= 3
    with torch.no_grad():
        u_NCHW = model.net[:3]((pixels(torch.tensor(x_NHWC)) - model.mean) / model.std)
        clean_C = model.net[3](u_NCHW).var((0, 2, 3))
    wanted = excess_variance(model.net[4].running_var, clean_C).mean().item()
    found = drift(model, x_NHWC)
    assert wanted > 0.1
    assert found[0]["net.4"] == pytest.approx(wanted, abs=2e-4)
    monkeypatch.setattr(drifting, "AT_ONCE", 16 * 16 * 7)
    again = drift(model, x_NHWC)
    for one, two in zip(found, again, strict=True):
        assert one == pytest.approx(two, abs=2e-4)
    assert drift(model, x_NHWC) == again


def test_two_images_tell_nothing(benign):
    assert not odd(*drift(benign, draw(2, 0)))
