"""Natural-gradient descent with a Fisher-weighted anchor, on norms and head.

Minimises   L(theta) + eta/2 (theta - theta0)^T F (theta - theta0)   by steps

    g' = g + eta F (theta - theta0)
    v  = (F + eta F + damping)^-1 g'                       F: diagonal, at theta0
    a  = g'^T v / v^T (F* + eta F + damping) v             F*: exact, at theta
    theta <- theta - lr a v

The anchor's curvature eta F stands inside the inverse; left out, the step diverges. A diagonal
takes parameters for independent: where a thousand of them move the logits together it is wrong by
a factor of a thousand, and the plain step diverges too. So the diagonal only gives the direction,
and the length `a` comes from the exact Fisher F* along it (the rescaling of Martens & Grosse 2015,
arXiv 1503.05671, section 6.4), on some of the batch's images. With that, lr in (0, 1] means the
same on every network. Where a model is sure and wrong, F* vanishes and says nothing: no step is
longer than RADIUS allows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngf import params, trail
from ngf.device import autocast
from ngf.errors import InputError
from ngf.fisher.along import fisher_along
from ngf.fisher.diagonal import LAYERS, Diagonal, dot, fisher_diagonal, tuned_parameters
from ngf.progress import track
from ngf.training import Batch, Batches

RADIUS = 0.1  # of the tuned parameters' norm: the longest step
MEASURED = 64  # images of a step, at least, on which F* is taken: its length needs no more

# Shows a batch to the model in another way, for example doubled and perturbed, inside a block.
Show = Callable[[Batch], contextlib.AbstractContextManager[Batch]]


@dataclass(frozen=True)
class Rule:
    """lr: share of the optimal length, in (0, 1]. eta: weight of the anchor.

    damping: in units of the mean entry of F. fisher: "diagonal", or "identity" for F's mean entry
    everywhere, which makes the direction that of plain gradient descent. layers: what is tuned,
    one of `ngf.fisher.diagonal.LAYERS`. damping_last: the damping of the last step, reached
    linearly; None keeps it as it is.
    """

    lr: float
    eta: float
    damping: float
    fisher: str = "diagonal"
    layers: str = LAYERS[0]
    damping_last: float | None = None

    def damping_at(self, step: int, steps: int) -> float:
        if self.damping_last is None or steps < 2:
            return self.damping
        return self.damping + (self.damping_last - self.damping) * step / (steps - 1)

    def __post_init__(self) -> None:
        params.within("lr", self.lr, 0, 1)
        params.at_least(0, eta=self.eta, damping=self.damping)
        if self.damping_last is not None:
            params.at_least(0, damping_last=self.damping_last)
        params.one_of(("diagonal", "identity"), fisher=self.fisher)
        params.one_of(LAYERS, layers=self.layers)


def descend(
    model: nn.Module,
    batches: Batches,
    *,
    steps: int,
    views: int,
    rule: Rule,
    generator: torch.Generator,
    show: Show = contextlib.nullcontext,
) -> int:
    """Tune the rule's layers in place, norm statistics fixed. Returns the number of parameters.

    Args:
        views: passes over the data for F. show: how each batch is shown to the model; the labels
            may be classes [B] or probabilities [B, K].

    Raises:
        InputError: the Fisher is singular for this damping, or there is nothing to tune.
    """
    model.eval()
    parameters = tuned_parameters(model, rule.layers)
    if not parameters:
        raise InputError(f"the model has no batch norm, so layers '{rule.layers}' tunes nothing")
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    count = views * batches.per_epoch
    whole = fisher_diagonal(model, track(batches.take(count), "Fisher", count), generator)
    fisher = {name: whole[name] for name in parameters}
    mean = torch.cat([square.flatten() for square in fisher.values()]).mean()
    if rule.fisher == "identity":
        fisher = {name: mean.expand_as(square) for name, square in fisher.items()}
    pull = {name: rule.eta * square for name, square in fisher.items()}
    longest = RADIUS * dot(start, start).sqrt()
    for step, batch in enumerate(track(batches.take(steps), "natural gradient", steps)):
        damping = rule.damping_at(step, steps)
        held = {name: square + damping * mean for name, square in pull.items()}
        with show(batch) as shown:
            gradient = _gradient(model, parameters, shown)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    gradient[name] += pull[name] * (parameter - start[name])
                move = _step(model, shown[0], gradient, fisher, held)
        size = rule.lr * dot(move, move).sqrt()
        if not torch.isfinite(size):
            raise InputError(
                f"natural gradient: step {step} is not finite: the Fisher is singular or images "
                f"were moved too far; raise the damping (now {damping:g}) or lower the reach"
            )
        scale = rule.lr * (longest / size).clamp_max(1)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.sub_(scale * move[name])
        trail.mark(model, step + 1, steps)
    return sum(parameter.numel() for parameter in parameters.values())


def _step(
    model: nn.Module, x_NCHW: Tensor, gradient: Diagonal, fisher: Diagonal, held: Diagonal
) -> Diagonal:
    """The step for lr = 1; `held` is the curvature that the penalty and the damping add."""
    direction = {name: gradient[name] / (fisher[name] + held[name]) for name in gradient}
    slope = dot(gradient, direction)
    own = dot({name: held[name] * v for name, v in direction.items()}, direction)
    some_NCHW = x_NCHW[:: max(1, len(x_NCHW) // MEASURED)]
    length = slope / (fisher_along(model, some_NCHW, direction) + own)
    return {name: length * v for name, v in direction.items()}


def _gradient(model: nn.Module, parameters: dict[str, nn.Parameter], batch: Batch) -> Diagonal:
    """Gradient of the batch's mean cross-entropy."""
    x_NCHW, y_N = batch
    with autocast(x_NCHW.device):
        logits_NC = model(x_NCHW)
    loss = cross_entropy(logits_NC.float(), y_N)
    found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, found, strict=True))
