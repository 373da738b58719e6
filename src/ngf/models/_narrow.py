"""Convolutions of maps that are narrower than their stride, as late layers see small images.

In bfloat16 on a CPU oneDNN's gradient of their weights reads what lies beside the map: neighbours,
or what nobody wrote, NaN among it (seen with torch 2.13, with and without AMX). In float32 it is
right, and such a map costs next to nothing.
"""

import torch
from torch import Tensor, nn


class StridedConv2d(nn.Conv2d):
    """A convolution that leaves the CPU's autocast where its input is narrower than its stride."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow = input.device.type == "cpu" and input.shape[-1] < self.stride[1]
        if not (narrow and torch.is_autocast_enabled("cpu")):
            return nn.Conv2d._conv_forward(self, input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return nn.Conv2d._conv_forward(self, input.to(weight.dtype), weight, bias)


def mend(net: nn.Module) -> None:
    """Make torch's own strided convolutions `StridedConv2d`, in place; weights and names stay.

    A pickle of the whole network then needs this project to be read; its weights do not.
    """
    for module in net.modules():
        if type(module) is nn.Conv2d and module.stride[1] > 1:
            module.__class__ = StridedConv2d
