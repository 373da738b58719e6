"""Convolutions of maps that are narrower than their stride, as late layers see small images.

In bfloat16 on a CPU oneDNN's gradient of their weights reads what lies beside the map: neighbours,
or what nobody wrote, NaN among it (seen with torch 2.13, with and without AMX). In float32 it is
right, and such a map costs next to nothing.
"""

import torch
from torch import Tensor, nn


class Strided(nn.Conv2d):
    """A convolution that leaves autocast where its input is narrower than its stride."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.shape[-1] >= self.stride[1]:
            return super()._conv_forward(input, weight, bias)
        with torch.autocast(input.device.type, enabled=False):
            return super()._conv_forward(input.to(weight.dtype), weight, bias)


def mend(net: nn.Module) -> None:
    """Make torch's own strided convolutions `Strided`; weights and names stay."""
    for module in net.modules():
        if type(module) is nn.Conv2d and module.stride[1] > 1:
            module.__class__ = Strided
