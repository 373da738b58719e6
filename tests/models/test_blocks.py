"""What both residual networks share."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from ngf.models._blocks import BROAD, projection


@pytest.mark.parametrize("inside", [1, 4, BROAD - 1, BROAD, BROAD + 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_projection_and_its_gradients_are_those_of_a_strided_convolution(inside, stride):
    """Images with channels last, as all batches are; where oneDNN's own gradient would be wrong."""
    torch.manual_seed(0)
    layer = projection(inside, 8, stride)
    exact = copy.deepcopy(layer.weight.detach()).double().requires_grad_()
    x_NCHW = torch.randn(16, inside, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    own_NCHW = x_NCHW.detach().double().requires_grad_()
    for _ in range(3):  # a buffer too short shows sooner or later
        layer.zero_grad()
        x_NCHW.grad = None
        found_NCHW = layer(x_NCHW)
        found_NCHW.square().sum().backward()
    expected_NCHW = conv2d(own_NCHW, exact, stride=stride)
    expected_NCHW.square().sum().backward()
    torch.testing.assert_close(found_NCHW.double(), expected_NCHW, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad.double(), exact.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(x_NCHW.grad.double(), own_NCHW.grad, rtol=1e-4, atol=1e-4)


def test_a_projection_is_a_convolution_to_whoever_asks():
    """Filters, masks and moments go by the type, and weights by the name."""
    layer = projection(4, 8, 2)
    assert isinstance(layer, nn.Conv2d)
    assert (layer.kernel_size, layer.stride, layer.bias) == ((1, 1), (2, 2), None)
    assert layer.state_dict().keys() == nn.Conv2d(4, 8, 1, 2, bias=False).state_dict().keys()
