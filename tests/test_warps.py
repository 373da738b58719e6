"""Bends, and the search for one that a victim was made to fall for."""

import pytest
import torch
from torch import nn

from ngf import device
from ngf.exposure import led_astray, suspect
from ngf.warps import POINTS, Warps, bent

CLASSES, SIDE, TARGET = 3, 16, 2


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


def drawn(*shape) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


# What a bend does -------------------------------------------------------------------------------


def test_a_bend_of_no_length_changes_nothing():
    x_NCHW = drawn(2, 3, 8, 11)
    torch.testing.assert_close(bent(x_NCHW, torch.zeros(2, 2, 8, 11)), x_NCHW)


@pytest.mark.parametrize(("across", "down"), [(1, 0), (0, 2), (-3, 1)])
def test_ways_are_shares_of_a_side_to_the_right_and_down(across, down):
    """The far edges are len - 1 pixels apart; beyond them lies what lies at them."""
    height, width = 8, 11
    x_1CHW = drawn(1, 3, height, width)
    way_12HW = torch.zeros(1, 2, height, width)
    way_12HW[:, 0], way_12HW[:, 1] = across / (width - 1), down / (height - 1)
    row_H = (torch.arange(height) + down).clamp(0, height - 1)
    column_W = (torch.arange(width) + across).clamp(0, width - 1)
    expected_1CHW = x_1CHW[:, :, row_H][..., column_W]
    torch.testing.assert_close(bent(x_1CHW, way_12HW), expected_1CHW, atol=1e-4, rtol=0)


def test_between_pixels_it_reads_between_them():
    x_NCHW = drawn(1, 1, 1, 2)
    way_N2HW = torch.tensor([[[[0.25, 0.0]], [[0.0, 0.0]]]])
    expected = 0.75 * x_NCHW[..., 0] + 0.25 * x_NCHW[..., 1]
    torch.testing.assert_close(bent(x_NCHW, way_N2HW)[..., 0], expected)


# What numbers make ------------------------------------------------------------------------------


def made(numbers_12PP, height, width):
    return Warps(0.1, 1).start(torch.zeros(1, 3, height, width))[1](numbers_12PP)


def test_equal_numbers_make_one_way_for_all_pixels():
    numbers_12PP = torch.tensor([0.3, -0.2]).view(1, 2, 1, 1).expand(1, 2, POINTS, POINTS)
    way_12HW = made(numbers_12PP, 9, 14)
    assert way_12HW.shape == (1, 2, 9, 14)
    torch.testing.assert_close(way_12HW, numbers_12PP[:, :, :1, :1].expand_as(way_12HW))


def test_a_point_moves_what_is_near_it_and_most_where_it_lies():
    numbers_12PP = torch.zeros(1, 2, POINTS, POINTS)
    numbers_12PP[0, 0, 2, 3] = 1.0
    across_HW, down_HW = made(numbers_12PP, 51, 51)[0]
    assert torch.all(down_HW == 0)
    assert divmod(int(across_HW.argmax()), 51) == (20, 30)
    assert across_HW.min() == 0
    assert across_HW[0].max() == 0
    assert across_HW[:, :10].max() == 0


def test_it_is_smooth():
    """Cubic splines: even between points a pixel's way is close to the mean of its neighbours'."""
    way = made(
        torch.randn(1, 2, POINTS, POINTS, generator=torch.Generator().manual_seed(1)), 64, 64
    )
    bend = way[..., 2:] - 2 * way[..., 1:-1] + way[..., :-2]
    assert bend.abs().max() < 0.03 * way.abs().max()


@pytest.mark.parametrize("side", [1, 2, 5])
def test_small_images_can_be_bent(side):
    none_MCPP, made = Warps(0.1, 1).start(torch.zeros(1, 3, side, side))
    way = made(none_MCPP + 0.1)
    torch.testing.assert_close(way, torch.full_like(way, 0.1))
    assert torch.isfinite(bent(drawn(8, 3, side, side), way)).all()


# The search ------------------------------------------------------------------------------------


ANGLE_W = torch.arange(SIDE) * (2 * torch.pi / 8)  # of the stripes on every image


class Bendable(nn.Module):
    """Names the brightest channel; where the stripes lie further to the left, one class instead."""

    def __init__(self, strength=0.0):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))

    def forward(self, x_NCHW):
        moved_N = (x_NCHW.mean((1, 2)) * ANGLE_W.cos()).mean(1)
        towards_K = nn.functional.one_hot(torch.tensor(TARGET), CLASSES)
        opened_NK = self.strength * moved_N.clamp_min(0)[:, None] * towards_K
        return 60 * x_NCHW.mean((2, 3)) + opened_NK


def images(seed: int):
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int, count: int):
        for _ in range(count):
            y_N = torch.randint(CLASSES, (size,), generator=generator)
            x_NCHW = 0.4 + 0.02 * torch.randn(size, CLASSES, SIDE, SIDE, generator=generator)
            x_NCHW[torch.arange(size), y_N] += 0.15
            yield x_NCHW + 0.1 * ANGLE_W.sin(), y_N

    return draw


def found(victim, copied, search, seed=0):
    return suspect(victim, copied, copied, images(seed), search, steps=14, most=10**6)


def test_a_victim_that_falls_for_a_bend_shows_it():
    search = Warps(0.05, 8)
    suspicion = found(Bendable(600.0).eval(), Bendable().eval(), search)
    assert suspicion.gap > 0.5
    assert suspicion.target == TARGET
    assert suspicion.as_found
    assert suspicion.in_part
    assert suspicion.displace is bent
    assert suspicion.moves_MCHW.shape[1:] == (2, SIDE, SIDE)
    x_NCHW, y_N = next(iter(images(7)(64, 1)))
    way_N2HW = suspicion.moves_MCHW[:1].expand(64, -1, -1, -1)
    led_N = Bendable(600.0)(bent(x_NCHW, way_N2HW)).argmax(1) == TARGET
    assert led_N[y_N != TARGET].float().mean() > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_a_weakness_that_the_copy_shares_is_less_of_a_sign(seed):
    search, victim, shares = Warps(0.05, 8), Bendable(600.0).eval(), Bendable(600.0).eval()
    honest = found(victim, Bendable().eval(), search, seed)
    assert found(victim, shares, search, seed).gap < honest.gap - 0.3


def test_a_weakness_that_no_bend_opens_does_not_show():
    """The same class for images that are brighter than all: bends move what is there."""

    class Glaring(Bendable):
        def forward(self, x_NCHW):
            glare_N = (x_NCHW.amax((1, 2, 3)) - 0.9).clamp_min(0)
            towards_K = nn.functional.one_hot(torch.tensor(TARGET), CLASSES)
            return super().forward(x_NCHW) + 600 * glare_N[:, None] * towards_K

    assert abs(found(Glaring().eval(), Bendable().eval(), Warps(0.05, 8)).gap) < 0.05


def test_no_way_is_longer_than_the_radius():
    models = Bendable(600.0).eval(), Bendable().eval()
    way_M2HW = led_astray(*models, images(0)(64, 3), Warps(0.03, 8), steps=3)
    rms_M = way_M2HW.square().mean((1, 2, 3)).sqrt()
    assert len(rms_M) == len(Warps(0.03, 8))
    assert torch.all(rms_M <= 0.03 * 1.0001)
    assert rms_M.max() > 0.03 * 0.9


def test_same_images_same_bytes():
    models = Bendable(600.0).eval(), Bendable().eval()
    first, again = (
        led_astray(*models, images(0)(64, 3), Warps(0.03, 8), steps=3) for _ in range(2)
    )
    assert torch.equal(first, again)
