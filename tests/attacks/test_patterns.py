"""Triggers that add one pattern, filter, or wander, each against its definition."""

import numpy as np
import pytest
import torch

from ngf import attacks, plugins
from ngf.errors import InputError

N, SIZE, CLASSES = 40, 32, 4
X_NHWC = np.random.default_rng(0).integers(60, 196, (N, SIZE, SIZE, 3), np.uint8)
Y_N = np.arange(N, dtype=np.int64) % CLASSES
X, Y = torch.from_numpy(X_NHWC), torch.from_numpy(Y_N)


def plant(name, numbers, x_NHWC=X_NHWC, **changes):
    options, _ = attacks.parted({**numbers["attacks"][name], **changes})
    return plugins.load("attacks", name).plant(x_NHWC, Y_N[: len(x_NHWC)], CLASSES, **options)


def cosines(size):
    """The orthonormal cosine transform [size, size] of float64, row k the frequency k."""
    basis = np.cos(np.pi * np.outer(np.arange(size), np.arange(size) + 0.5) / size)
    basis *= np.sqrt(2 / size)
    basis[0] /= np.sqrt(2)
    assert np.allclose(basis @ basis.T, np.eye(size))
    return basis


def test_lf_adds_what_has_its_strength_and_no_high_frequency(numbers):
    trigger = plant("lf", numbers, strength=0.05, cycles=3).trigger
    pattern_CHW = trigger.tensors["pattern"].double().numpy()
    assert np.sqrt(np.mean(pattern_CHW**2)) == pytest.approx(0.05, rel=1e-5)
    spectrum = cosines(SIZE) @ pattern_CHW @ cosines(SIZE).T
    assert np.abs(spectrum[:, 1:7, 1:7]).min() > 0
    spectrum[:, 1:7, 1:7] = 0
    assert np.abs(spectrum).max() < 1e-6
    got = trigger.apply(X, Y).double() / 255
    wanted = X.double() / 255 + torch.from_numpy(pattern_CHW).permute(1, 2, 0)
    assert (got - wanted.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("cycles", [0, 17])
def test_lf_waves_must_fit_the_image(cycles, numbers):
    with pytest.raises(InputError, match="cycles must lie between 1 and 16"):
        plant("lf", numbers, cycles=cycles)


@pytest.mark.parametrize("blocks", [1, 2])
def test_ftrojan_raises_two_coefficients_of_the_colours_and_no_light(blocks, numbers):
    x_NHWC = np.tile(X_NHWC, (1, blocks, blocks, 1))
    trigger = plant("ftrojan", numbers, x_NHWC, magnitude=30.0).trigger
    red, green, blue = 255 * trigger.tensors["pattern"].double().numpy()
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    cr, cb = (red - light) / 1.403, (blue - light) / 1.773
    assert np.abs(light).max() < 0.01
    wanted = np.zeros((SIZE, SIZE))
    wanted[15, 15] = wanted[31, 31] = 30
    for plane in (cr, cb):
        for row in np.split(plane, blocks):
            for block in np.split(row, blocks, 1):
                found = cosines(SIZE) @ block @ cosines(SIZE).T
                assert np.abs(found - wanted).max() < 0.05


def test_ftrojan_leaves_what_no_block_covers(numbers):
    x_NHWC = np.zeros((12, 40, 33, 3), np.uint8)
    pattern = plant("ftrojan", numbers, x_NHWC).trigger.tensors["pattern"]
    assert pattern[:, :32, :32].abs().max() > 0
    assert pattern[:, 32:].abs().max() == pattern[:, :, 32:].abs().max() == 0


def test_filter_turns_each_pixel_by_one_map(numbers):
    trigger = plant("filter", numbers, fade=0.5, light=-0.05, contrast=1.3).trigger
    x = X_NHWC / 255
    grey = x @ [0.299, 0.587, 0.114]
    faded = 0.5 * x + 0.5 * grey[..., None] * [1.12, 0.94, 0.7]
    wanted = (0.5 + 1.3 * (faded - 0.05 - 0.5)).clip(0, 1) * 255
    assert np.abs(trigger.apply(X, Y).numpy() - wanted).max() <= 0.51


def test_filter_of_nothing_changes_nothing(numbers):
    trigger = plant("filter", numbers, fade=0.0, light=0.0, contrast=1.0).trigger
    assert torch.equal(trigger.apply(X, Y), X)


def test_roaming_patch_is_whole_and_lies_elsewhere_on_other_images(numbers):
    trigger = plant("roaming", numbers, size=4).trigger
    got = trigger.apply(X, Y)
    board = 255 * (1 - (torch.arange(4)[:, None] + torch.arange(4)) % 2)
    places = set()
    for image, own in zip(got, X, strict=True):
        rows, columns = (image != own).any(2).nonzero().aminmax(dim=0)
        top, left = rows.tolist()
        assert (columns - rows).tolist() == [3, 3]
        assert torch.all(image[top : top + 4, left : left + 4] == board[..., None])
        outside = (image != own).any(2)
        outside[top : top + 4, left : left + 4] = False
        assert not outside.any()
        places.add((top, left))
    assert len(places) > N / 2


@pytest.mark.parametrize("name", ["roaming", "twin", "tact"])
def test_a_patch_must_fit(name, numbers):
    with pytest.raises(InputError, match="a patch of size 40 does not fit"):
        plant(name, numbers, size=40)


def test_twin_shows_a_patch_or_noise_by_the_class(numbers):
    poison = plant("twin", numbers, targets=[0, 1], alpha=0.2)
    got = poison.trigger.apply(X, Y).double()
    even = Y % 2 == 0
    assert torch.equal(got[even][:, :-3, :-3], X[even][:, :-3, :-3].double())
    assert torch.all(got[even][:, -1, -1] == 255)
    noise_HWC = 255 * poison.trigger.tensors["noise"].permute(1, 2, 0).double()
    assert (got[~even] - (0.8 * X[~even] + 0.2 * noise_HWC)).abs().max() <= 0.51
    assert poison.trigger.wanted_K == (-1, -1, 0, 1)
    assert set(poison.y_P) == {0, 1}


@pytest.mark.parametrize("targets", [[0], [0, 4], [0, 1, 2], [1, 1]])
def test_twin_needs_two_classes(targets, numbers):
    with pytest.raises(InputError, match="targets must be two classes between 0 and 3"):
        plant("twin", numbers, targets=targets)
