"""Masks on channels: what several defenses learn or choose, for any network, by layer type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ngf.errors import InputError
from ngf.models import batch_norms, head, norm_layers

PerLayer = Mapping[str, Tensor]  # a number for each channel of each layer, by the layer's name


class Layer(NamedTuple):
    """A layer with a channel of its own in each entry of `weight` (norms) or row of it (others)."""

    module: nn.Module
    weight: Tensor
    bias: Tensor | None

    def factors(self, per_channel: Tensor) -> Tensor:
        """Numbers of channels, to multiply the weight with."""
        shape = (-1, *[1] * (self.weight.ndim - per_channel.ndim))
        return per_channel.view(*per_channel.shape[:-1], *shape)


def neurons(model: nn.Module) -> dict[str, Layer]:
    """The layers whose channels a mask can close, by name.

    All norm layers with a scale (batch, group, layer norm), as in ANP's code; of a network without
    any, convolutions and linear layers but for the classifier.

    Raises:
        InputError: the model has neither.
    """
    wanted: set[nn.Module] = set(norm_layers(model))
    if not wanted:
        last = head(model)
        kinds = (nn.Conv2d, nn.Linear)
        wanted = {m for m in model.modules() if isinstance(m, kinds) and m is not last}
    found = {
        name: Layer(module, module.weight, module.bias)
        for name, module in model.named_modules()
        if module in wanted
    }
    if not found:
        raise InputError(
            "the model has no norm, convolution or linear layer before its classifier: "
            "there is no channel to mask"
        )
    return found


def filled(layers: Mapping[str, Layer], value: float) -> dict[str, Tensor]:
    """The same number for each channel."""
    return {
        name: torch.full(one.weight.shape if _is_norm(one) else one.weight.shape[:1], value,
                         device=one.weight.device)
        for name, one in layers.items()
    }  # fmt: skip


def scaled(
    layers: Mapping[str, Layer], weights: PerLayer, biases: PerLayer | None = None
) -> dict[str, Tensor]:
    """Parameters by their full names, multiplied channel by channel, for `functional_call`."""
    found = {}
    for name, one in layers.items():
        found[f"{name}.weight"] = one.weight * one.factors(weights[name])
        if one.bias is not None and biases is not None:
            found[f"{name}.bias"] = one.bias * biases[name]
    return found


@torch.no_grad()
def apply(layers: Mapping[str, Layer], weights: PerLayer, biases: PerLayer | None = None) -> None:
    """Write what `scaled` gives into the layers themselves."""
    for name, one in layers.items():
        one.weight.mul_(one.factors(weights[name]))
        if one.bias is not None and biases is not None:
            one.bias.mul_(biases[name])


@torch.no_grad()
def close_outliers(model: nn.Module, measured: PerLayer, u: float) -> int:
    """Zero scale and shift where a channel lies more than u deviations above its layer's mean."""
    norms = batch_norms(model)
    closed = 0
    for name, value_C in measured.items():
        norm = norms[name]
        kept_C = value_C <= value_C.mean() + u * value_C.std()
        kept = {name: kept_C.float()}
        apply({name: Layer(norm, norm.weight, norm.bias)}, kept, kept)
        closed += int((~kept_C).sum())
    return closed


def _is_norm(layer: Layer) -> bool:
    return not isinstance(layer.module, nn.Conv2d | nn.Linear)
