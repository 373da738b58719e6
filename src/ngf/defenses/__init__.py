"""Defenses. A plug-in has one function:

    purify(model, clean, *, <options>) -> Purified

It sees the model and the defender's clean split and nothing else: no attack, no trigger, no
training data, no test split. It may change the model that it is given. After each gradient step
it says `ngf.trail.mark`, which `ngf.training.fit` and `ngf.fisher.natural.descend` do for it.
"""

from dataclasses import dataclass, field

from torch import Tensor

from ngf.models import Classifier


@dataclass(frozen=True)
class Clean:
    """The defender's clean split on the device. x: uint8 [N, H, W, 3]; y: int64 [N]."""

    x_NHWC: Tensor
    y_N: Tensor
    flip: bool


@dataclass(frozen=True)
class Purified:
    """A purified model and what it took.

    tuned: trained parameters (a count). steps: gradient steps. notes: further numbers.
    """

    model: Classifier
    tuned: int
    steps: int
    notes: dict[str, float] = field(default_factory=dict)
