"""Gradients of convolutions whose map is narrower than their stride."""

import copy

import pytest
import torch
from torch import nn

from ngf.models import Classifier, _narrow
from ngf.movement import by_layer

CHANNELS = 16


def strided(groups=CHANNELS, stride=2, kernel=3) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, kernel // 2, groups=groups, bias=False)


def gradient(conv: nn.Conv2d, x_NCHW: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y_NCHW = conv(x_NCHW)
    y_NCHW.float().square().sum().backward()
    return conv.weight.grad


@pytest.mark.parametrize("groups", [1, CHANNELS])
@pytest.mark.parametrize(("stride", "kernel"), [(2, 3), (2, 5), (2, 7), (3, 3), (4, 3), (3, 2)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 1), (4, 1), (3, 3), (1, 3), (2, 2)])
def test_weights_get_the_gradient_of_their_definition(groups, stride, kernel, height, width):
    x_NCHW = torch.randn(4, CHANNELS, height, width).to(memory_format=torch.channels_last)
    x_NCHW = x_NCHW.bfloat16().float()
    conv = strided(groups, stride, kernel)
    _narrow.mend(conv)
    exact = strided(groups, stride, kernel).double()
    exact(x_NCHW.double()).square().sum().backward()
    expected = exact.weight.grad.float()
    torch.testing.assert_close(
        gradient(conv, x_NCHW), expected, rtol=0.05, atol=0.03 * expected.abs().max().item()
    )


def test_a_classifier_mends_its_strided_convolutions_and_no_others():
    class Own(nn.Conv2d):
        """May compute something else than its parent."""

    net = nn.Sequential(strided(), strided(stride=1), Own(3, 3, 3, 2), nn.Flatten())
    names = list(net.state_dict())
    Classifier(net, [0.5], [0.2], {})
    assert [type(module) for module in net[:3]] == [_narrow.StridedConv2d, nn.Conv2d, Own]
    assert list(net.state_dict()) == names


def test_wide_maps_stay_in_the_precision_of_autocast():
    x_NCHW = torch.randn(2, CHANNELS, 8, 8)
    mended = strided()
    _narrow.mend(mended)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mended(x_NCHW), strided()(x_NCHW))
        assert mended(x_NCHW).dtype == torch.bfloat16
        assert mended(x_NCHW[..., :1]).dtype == torch.float32


def test_an_exported_graph_of_a_narrow_map_runs_under_autocast():
    mended = strided()
    _narrow.mend(mended)
    x_NCHW = torch.randn(2, CHANNELS, 1, 1)
    graph = torch.export.export(mended, (x_NCHW,)).module()
    assert torch.equal(graph(x_NCHW), mended(x_NCHW))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(graph(x_NCHW).float(), mended(x_NCHW), rtol=0.02, atol=0.02)


def test_reports_call_it_a_convolution():
    mended = strided()
    _narrow.mend(mended)
    (row,) = by_layer(mended, copy.deepcopy(mended))
    assert "Conv" in row["kind"]
