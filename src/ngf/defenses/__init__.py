"""Defenses. A plug-in has one function:

    purify(model, clean, *, <options>) -> Purified

It sees the model and the defender's clean split and nothing else: no attack, no trigger, no
training data, no test split. It may change the model that it is given. After each gradient step
it says `ngf.trail.mark`, which `ngf.training.fit` and `ngf.fisher.natural.descend` do for it.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ngf.models import Classifier

if TYPE_CHECKING:
    from ngf.datasets import Split


@dataclass(frozen=True)
class Clean:
    """The defender's clean split on the device. x: uint8 [N, H, W, 3]; y: int64 [N]."""

    x_NHWC: Tensor
    y_N: Tensor
    flip: bool

    @classmethod
    def of(cls, split: "Split", device: torch.device) -> "Clean":
        """A clean split as it was prepared, moved to the device."""
        x_NHWC = torch.tensor(split.x_NHWC[:], device=device)
        return cls(x_NHWC, torch.tensor(split.y_N, device=device), split.flip)


@dataclass(frozen=True)
class Purified:
    """A purified model and what it took.

    tuned: trained parameters (a count). steps: gradient steps. notes: further numbers.
    """

    model: Classifier
    tuned: int
    steps: int
    notes: dict[str, float] = field(default_factory=dict)
