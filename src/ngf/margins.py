"""What a model says of a class: its probability, or how sure it is, measured by clean images.

Probabilities of two models do not compare: a filtered copy has smaller logits than its victim, so
it wavers where the victim is certain of the same thing. Their margins do, each in units of its own
median margin on clean images.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ngf.device import autocast

CHUNK = 512  # images in one forward pass
TINY = 1e-6


class Says(abc.ABC):
    """What a model in evaluation mode says of each class of images [N, C, H, W]: [N, K] in [0, 1].

    `of` makes it of logits [N, K], for who has them already.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        return self.of(logits(self.model, x_NCHW))

    @abc.abstractmethod
    def of(self, logits_NK: Tensor) -> Tensor: ...


Judge = Callable[[nn.Module], Says]


class Sureness(Says):
    """How sure it is of each class.

    That is by how much a class's logit lies above every other one's, as a share of the median
    margin that the model has on the images that were given here: 0 for every class but the one
    that is named.
    """

    def __init__(self, model: nn.Module, x_NCHW: Tensor) -> None:
        super().__init__(model)
        parts = [logits(model, part) for part in x_NCHW.split(CHUNK)]
        self.usual = margins(torch.cat(parts)).amax(1).median().clamp_min(TINY)

    def of(self, logits_NK: Tensor) -> Tensor:
        return (margins(logits_NK) / self.usual).clamp(0, 1)


class Probability(Says):
    """Its probabilities."""

    def of(self, logits_NK: Tensor) -> Tensor:
        return logits_NK.softmax(1)


def margins(logits_NK: Tensor) -> Tensor:
    """By how much each class lies above the highest of the others [N, K]; below 0 for all but one.

    A tie is a margin of 0 for those that share the top.
    """
    top_N2, class_N2 = logits_NK.topk(2, 1)
    rival_NK = top_N2[:, :1].expand_as(logits_NK).scatter(1, class_N2[:, :1], top_N2[:, 1:])
    return logits_NK - rival_NK


@torch.no_grad()
def logits(model: nn.Module, x_NCHW: Tensor) -> Tensor:
    """[N, K], computed in the precision that is fastest and given in float32."""
    with autocast(x_NCHW.device):
        logits_NK: Tensor = model(x_NCHW)
    return logits_NK.float()
