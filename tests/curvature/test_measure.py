"""Eigenvalues, traces and intervals against the dense matrices, in float64."""

import math

import numpy as np
import pytest
import torch
from _network import at, dense_fisher, dense_hessian, images, network
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st

from ngf.curvature.along import curvatures
from ngf.curvature.measure import compare, interval, measure, ratio
from ngf.curvature.surface import RISE, reach, surface


def test_along_a_direction_each_image_has_its_quadratic_forms():
    net, (x_NCHW, y_N) = network(), images()
    v_D = torch.randn(len(at(net)), generator=torch.Generator().manual_seed(3)).double()
    hessian_N, fisher_N, loss_N = curvatures(net, x_NCHW, y_N, v_D)
    for row in range(len(y_N)):
        one = slice(row, row + 1)
        wanted = (v_D @ dense_hessian(net, x_NCHW[one], y_N[one]) @ v_D).item()
        assert hessian_N[row].item() == pytest.approx(wanted, rel=1e-9)
        wanted = (v_D @ dense_fisher(net, x_NCHW[one]) @ v_D).item()
        assert fisher_N[row].item() == pytest.approx(wanted, rel=1e-9)
    assert loss_N.mean().item() == pytest.approx(
        torch.nn.functional.cross_entropy(net(x_NCHW), y_N).item()
    )


def test_frozen_parameters_do_not_count():
    net, (x_NCHW, y_N) = network(), images()
    net[0].requires_grad_(False)
    free = at(net)[20:]  # the convolution has 2 * 9 + 2
    v_D = torch.ones_like(free)
    hessian = dense_hessian(net, x_NCHW, y_N)[20:, 20:]
    found_N, _, _ = curvatures(net, x_NCHW, y_N, v_D)
    assert found_N.mean().item() == pytest.approx((v_D @ hessian @ v_D).item(), rel=1e-9)


def test_the_largest_eigenvalues_are_the_dense_ones():
    net, (x_NCHW, y_N) = network(), images(40)
    values, vectors = torch.linalg.eigh(dense_hessian(net, x_NCHW, y_N))
    found = measure(net, x_NCHW, y_N, probes=2, lanczos=0)
    assert found.top == pytest.approx(values[-2:].flip(0).tolist(), rel=1e-2)
    assert found.values_N.mean().item() == pytest.approx(found.top[0], rel=1e-6)
    assert abs(found.vectors_KD[0] @ vectors[:, -1]).item() == pytest.approx(1, abs=1e-3)
    assert found.loss == pytest.approx(
        torch.nn.functional.cross_entropy(net(x_NCHW), y_N).item(), rel=1e-9
    )
    assert all(p.grad is None for p in net.parameters())


def test_the_traces_are_within_their_intervals():
    net, (x_NCHW, y_N) = network(), images(40)
    found = measure(net, x_NCHW, y_N, probes=200, lanczos=0)
    exact = torch.trace(dense_hessian(net, x_NCHW, y_N)).item()
    fisher = torch.trace(dense_fisher(net, x_NCHW)).item()
    assert found.trace["value"] == pytest.approx(exact, rel=0.1)
    assert found.fisher["value"] == pytest.approx(fisher, rel=0.1)
    assert found.trace["low"] < exact < found.trace["high"]
    assert found.fisher["low"] < fisher < found.fisher["high"]


def test_the_density_holds_all_eigenvalues_once():
    net, (x_NCHW, y_N) = network(), images(40)
    density = measure(net, x_NCHW, y_N, probes=2, lanczos=20).density
    grid, heights = np.array(density["grid"]), np.array(density["density"])
    assert np.trapezoid(heights, grid) == pytest.approx(1, abs=0.05)
    values = torch.linalg.eigvalsh(dense_hessian(net, x_NCHW, y_N))
    assert grid[0] < values[0] < values[-1] < grid[-1]


def test_the_same_seed_gives_the_same_numbers_and_leaves_torchs_generator_alone():
    net, (x_NCHW, y_N) = network(), images()
    torch.manual_seed(5)
    expected = torch.rand(1).item()
    torch.manual_seed(5)
    first = measure(net, x_NCHW, y_N, probes=3, lanczos=5, seed=4).as_dict()
    assert torch.rand(1).item() == expected
    assert measure(net, x_NCHW, y_N, probes=3, lanczos=5, seed=4).as_dict() == first
    other = measure(net, x_NCHW, y_N, probes=3, lanczos=5, seed=6).as_dict()
    assert other["trace"]["value"] != first["trace"]["value"]


# Intervals ---------------------------------------------------------------------------------------


def test_an_interval_of_one_direction_is_that_of_the_mean():
    values = torch.tensor([1.0, 2.0, 4.0, 5.0])
    found = interval(values[None])
    assert found["value"] == 3
    assert found["se"] == pytest.approx(values.std().item() / 2)
    assert found["high"] - found["value"] == pytest.approx(1.96 * found["se"], rel=1e-4)


def test_an_interval_holds_the_truth_in_95_of_100_samples():
    """Values with a part of the image and a part of the probe, as crossed as in Hutchinson's."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        crossed = rng.normal(size=(20, 1)) + rng.normal(size=(1, 50)) + rng.normal(size=(20, 50))
        found = interval(torch.tensor(crossed + 7))
        held += found["low"] <= 7 <= found["high"]
    assert 920 < held < 975


def test_a_ratios_interval_holds_the_truth_in_95_of_100_samples():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        base = rng.gamma(2.0, 1.0, 400)
        values = 3 * base + rng.normal(size=400)
        found = ratio(torch.tensor(values), torch.tensor(base))
        held += found["low"] <= 3 <= found["high"]
    assert 930 < held < 970


@given(st.floats(0.1, 10))
def test_a_model_beside_a_multiple_of_itself(times):
    values = torch.linspace(0.5, 4, 30, dtype=torch.float64)
    found = ratio(times * values, values)
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx([times] * 3)


def test_compared_on_the_same_images():
    net, (x_NCHW, y_N) = network(), images(30)
    one = measure(net, x_NCHW, y_N, probes=2, lanczos=4)
    found = compare({"reference": one, "victim": one, "model": one})
    assert found["n"] == 30
    assert found["ratio"]["low"] == pytest.approx(1)
    assert found["model"]["lambda_max"] == found["victim"]["lambda_max"]
    assert math.isfinite(found["model"]["fisher_trace"]["se"])


# The surface -------------------------------------------------------------------------------------


def test_the_surface_is_the_loss_and_leaves_the_model_alone():
    net, (x_NCHW, y_N) = network(), images(30)
    before = at(net).clone()
    found = measure(net, x_NCHW, y_N, probes=2, lanczos=0)
    far = reach(found.top[0])
    shown = surface(net, x_NCHW, y_N, found.vectors_KD, reach=far, steps=5)
    assert torch.equal(at(net), before)
    assert shown["alpha"] == pytest.approx([-far, -far / 2, 0, far / 2, far], rel=1e-4)
    assert shown["loss"][2][2] == pytest.approx(found.loss, rel=1e-4)
    assert far == pytest.approx(math.sqrt(2 * RISE / found.top[0]))


def test_near_the_model_the_surface_bends_by_its_eigenvalues():
    net, (x_NCHW, y_N) = network(), images(30)
    u1_u2 = torch.linalg.eigh(dense_hessian(net, x_NCHW, y_N)).eigenvectors[:, [-1, -2]].T
    h = 0.02
    loss = surface(net, x_NCHW, y_N, u1_u2, reach=h, steps=3)["loss"]
    bend = (loss[0][1] - 2 * loss[1][1] + loss[2][1]) / h**2
    wanted = torch.linalg.eigvalsh(dense_hessian(net, x_NCHW, y_N))[-1].item()
    assert bend == pytest.approx(wanted, rel=0.15)  # figures in files have five digits


@pytest.mark.parametrize("arch", ["preact_resnet", "resnet"])
def test_the_projects_networks_bear_it(arch):
    model = tiny_model(arch=arch)
    x_NCHW = torch.rand(20, 3, *model.card["input_CHW"][1:])
    found = measure(model, x_NCHW, torch.arange(20) % 3, probes=2, lanczos=3)
    assert found.values_N.mean().item() == pytest.approx(found.top[0], rel=1e-2)
