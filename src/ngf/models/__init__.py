"""Networks and the classifier that every stage passes on.

A model plug-in has one function, `build(n_classes, *, <options>) -> torch.nn.Module`, that maps
normalised images [N, 3, H, W] to logits [N, n_classes] and ends in one `torch.nn.Linear`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ngf import params, plugins
from ngf.errors import InputError
from ngf.models import _narrow

Norm = nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm


class Classifier(nn.Module):
    """A network with its normalisation inside.

    Args:
        net: maps normalised images [N, 3, H, W] to logits [N, C]. It is taken over: its strided
            convolutions are changed in place (`ngf.models._narrow`).
        mean, std: one number a channel, for pixels in [0, 1].
        card: what rebuilds it: architecture, options, classes, input size, parents.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: list[float], std: list[float], card: Mapping[str, Any]
    ) -> None:
        super().__init__()
        _narrow.mend(net)
        self.net = net
        self.card = dict(card)
        # On the network's own device at construction; they are numbers of the card, not weights.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits [N, C] of images in [0, 1]."""
        logits_NC: Tensor = self.net((x_NCHW - self.mean) / self.std)
        return logits_NC


def build(
    card: Mapping[str, Any], mean: list[float], std: list[float], *, where: str = "model"
) -> Classifier:
    """A fresh classifier from `card["arch"]`, `card["options"]` and `card["classes"]`."""
    taken = options(card["arch"], card["options"], where)
    net = plugins.load("models", card["arch"]).build(len(card["classes"]), **taken)
    net.to(memory_format=torch.channels_last)
    _check_head(net, card.get("head"))
    return Classifier(net, mean, std, {**card, "options": taken, "mean": mean, "std": std})


def options(arch: str, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the architecture's plug-in takes, checked; `where` names it in an error."""
    return params.options(plugins.load("models", arch).build, given, where)


def _check_head(net: nn.Module, name: str | None) -> None:
    linear = [key for key, module in net.named_modules() if isinstance(module, nn.Linear)]
    if name and name not in linear:
        raise InputError(f"the card's head '{name}' is no linear layer: there is {linear}")


def head(model: nn.Module) -> nn.Linear:
    """The classifier layer: the one that the card names, else the last linear layer registered."""
    if isinstance(model, Classifier) and model.card.get("head"):
        named = model.net.get_submodule(model.card["head"])
        assert isinstance(named, nn.Linear)
        return named
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError("the model has no linear layer, so it has no classifier head to tune")
    return linear[-1]


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The batch-norm layers that keep running statistics, by name, in the order of registration."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats
    }


def norm_layers(model: nn.Module) -> list[Norm]:
    """All batch, group and layer norms with a scale, in the order of registration.

    Batch norms count where they keep running statistics. A subclass may compute something else
    than its parent, so it does not count.
    """
    found: list[Norm] = []
    for module in model.modules():
        if not isinstance(module, Norm) or type(module) not in Norm.__args__:
            continue
        keeps = not isinstance(module, nn.BatchNorm2d) or module.track_running_stats
        if keeps and module.weight is not None:
            found.append(module)
    return found
