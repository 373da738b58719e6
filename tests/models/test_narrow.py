"""Gradients of convolutions whose map is narrower than their stride."""

import pytest
import torch
from torch import nn

from ngf.device import autocast
from ngf.models import Classifier, _narrow

CHANNELS = 16


def strided(groups=CHANNELS, stride=2, kernel=3) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, kernel // 2, groups=groups, bias=False)


def gradient(conv: nn.Conv2d, x_NCHW: torch.Tensor) -> torch.Tensor:
    conv.zero_grad()
    with autocast(x_NCHW.device):
        y_NCHW = conv(x_NCHW)
    y_NCHW.float().square().sum().backward()
    return conv.weight.grad


@pytest.mark.parametrize("groups", [1, CHANNELS])
@pytest.mark.parametrize(("stride", "kernel"), [(2, 3), (2, 5), (4, 3)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 1), (4, 1), (3, 3), (1, 3), (2, 2)])
def test_weights_get_the_gradient_of_their_definition(groups, stride, kernel, height, width):
    """Beside the map lie other images and, before and behind all, large numbers."""
    x_NCHW = torch.full((6, CHANNELS, height, width), 1e4).to(memory_format=torch.channels_last)
    x_NCHW[1:-1] = torch.randn(4, CHANNELS, height, width)
    x_NCHW = x_NCHW[1:-1].bfloat16().float()
    conv = strided(groups, stride, kernel)
    _narrow.mend(conv)
    got = gradient(conv, x_NCHW)
    exact = strided(groups, stride, kernel).double()
    exact(x_NCHW.double()).square().sum().backward()
    expected = exact.weight.grad.float()
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.03 * expected.abs().max().item())


def test_a_classifier_mends_its_strided_convolutions_and_no_others():
    class Own(nn.Conv2d):
        """May compute something else than its parent."""

    net = nn.Sequential(strided(), strided(stride=1), Own(3, 3, 3, 2), nn.Flatten())
    names = list(net.state_dict())
    Classifier(net, [0.5], [0.2], {})
    assert [type(module) for module in net[:3]] == [_narrow.Strided, nn.Conv2d, Own]
    assert list(net.state_dict()) == names


def test_wide_maps_stay_in_the_precision_of_autocast():
    x_NCHW = torch.randn(2, CHANNELS, 8, 8)
    mended = strided()
    _narrow.mend(mended)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mended(x_NCHW), strided()(x_NCHW))
        assert mended(x_NCHW).dtype == torch.bfloat16
        assert mended(x_NCHW[..., :1]).dtype == torch.float32
