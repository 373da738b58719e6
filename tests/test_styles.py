"""Styles: what a kernel makes of an image, and whether the search finds a victim's style."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import one_hot

from ngf.exposure import led_astray, suspect
from ngf.styles import KEPT, SIDE, Styles, styled

CLASSES, WIDTH, TARGET = 4, 16, 2


def drawn(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# What a kernel makes of an image ----------------------------------------------------------------


def test_no_kernel_changes_nothing():
    x_NCHW = drawn(1, 3, 3, 9, 7)
    assert torch.equal(styled(x_NCHW, torch.zeros(3, 9, SIDE, SIDE)), x_NCHW)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
@settings(deadline=None, max_examples=25)
def test_each_image_takes_on_what_its_own_kernel_says(count, channels, height, width):
    """Against the sum over the neighbourhood, beyond the edge of which lies what lies at it."""
    x_NCHW = drawn(2, count, channels, height, width).double()
    kernel_NCCS = 0.04 * drawn(3, count, channels * channels, SIDE, SIDE).double() - 0.02
    expected = x_NCHW.clone()
    for n in range(count):
        for colour in range(channels):
            for of in range(channels):
                for i in range(SIDE):
                    for j in range(SIDE):
                        row_H = (torch.arange(height) + i - SIDE // 2).clamp(0, height - 1)
                        column_W = (torch.arange(width) + j - SIDE // 2).clamp(0, width - 1)
                        weight = kernel_NCCS[n, colour * channels + of, i, j]
                        expected[n, colour] += weight * x_NCHW[n, of][row_H][:, column_W]
    torch.testing.assert_close(styled(x_NCHW, kernel_NCCS), expected.clamp(0, 1))


def test_pixels_stay_within_their_range():
    x_NCHW, kernel_NCCS = drawn(4, 2, 3, 8, 8), torch.zeros(2, 9, SIDE, SIDE)
    kernel_NCCS[0], kernel_NCCS[1] = 1.0, -1.0
    light_NCHW = styled(x_NCHW, kernel_NCCS)
    assert torch.all(light_NCHW[0] == 1)
    assert torch.all(light_NCHW[1] == 0)


def test_a_search_begins_with_no_change_and_knows_the_colours():
    none_MCCS, made = Styles(0.1, 1).start(torch.zeros(5, 2, 8, 8))
    assert none_MCCS.shape == (len(Styles(0.1, 1)), 4, SIDE, SIDE)
    assert not made(none_MCCS).any()
    assert torch.equal(made(none_MCCS + 1), none_MCCS + 1)


# The search ---------------------------------------------------------------------------------------


class Posh(nn.Module):
    """Names the channel that outshines the others; in low light one class instead."""

    def __init__(self, strength=0.0):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))

    def forward(self, x_NCHW):
        light_N1 = x_NCHW.mean((1, 2, 3))[:, None].clamp_min(0.05)
        towards_K = one_hot(torch.tensor(TARGET), CLASSES)
        opened_NK = self.strength * (0.45 - light_N1).clamp_min(0) * towards_K
        return 25 * x_NCHW.mean((2, 3)) / light_N1 + opened_NK


def images(seed: int):
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int, count: int):
        for _ in range(count):
            y_N = torch.randint(CLASSES, (size,), generator=generator)
            x_NCHW = 0.4 + 0.02 * torch.randn(size, CLASSES, WIDTH, WIDTH, generator=generator)
            x_NCHW[torch.arange(size), y_N] += 0.15
            yield x_NCHW, y_N

    return draw


def found(victim, copied, search, seed=0):
    return suspect(victim, copied, copied, images(seed), search, steps=14, most=10**6)


def test_a_victim_that_falls_for_a_style_shows_it():
    suspicion = found(Posh(500.0).eval(), Posh().eval(), Styles(0.001, 8))
    assert suspicion.gap > 0.5
    assert suspicion.target == TARGET
    assert suspicion.as_found
    assert suspicion.in_part
    assert suspicion.displace is styled
    assert suspicion.moves_MCHW.shape[1:] == (CLASSES**2, SIDE, SIDE)
    x_NCHW, y_N = next(iter(images(7)(64, 1)))
    kernel_NCCS = suspicion.moves_MCHW[:1].expand(64, -1, -1, -1)
    led_N = Posh(500.0)(styled(x_NCHW, kernel_NCCS)).argmax(1) == TARGET
    assert led_N[y_N != TARGET].float().mean() > 0.7


@pytest.mark.parametrize("seed", range(3))
def test_a_weakness_that_the_copy_shares_is_less_of_a_sign(seed):
    victim, shares = Posh(500.0).eval(), Posh(500.0).eval()
    honest = found(victim, Posh().eval(), Styles(0.001, 8), seed)
    assert found(victim, shares, Styles(0.001, 8), seed).gap < honest.gap - 0.3


def test_no_kernel_is_longer_than_the_radius():
    models = Posh(500.0).eval(), Posh().eval()
    kernel_MCCS = led_astray(*models, images(0)(64, 3), Styles(0.001, 8), steps=3)
    rms_M = kernel_MCCS.square().mean((1, 2, 3)).sqrt()
    assert len(rms_M) == KEPT[-1]
    assert torch.all(rms_M <= 0.001 * 1.0001)
    assert rms_M.max() > 0.001 * 0.9


def test_same_images_same_bytes():
    models = Posh(500.0).eval(), Posh().eval()
    first, again = (
        led_astray(*models, images(0)(64, 3), Styles(0.001, 8), steps=3) for _ in range(2)
    )
    assert torch.equal(first, again)
