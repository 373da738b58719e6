"""I-BAU (Zeng et al., ICLR 2022, arXiv 2110.03735): unlearn the worst universal perturbation.

min over theta of  max over d of  L(x + d; theta), with the exact dependence of the inner solution
on theta: the implicit hypergradient. d is a fixed point of the step G(d, theta) = d - r grad_d g,
g = -L + l2 |d|^2; so d theta L = grad_theta L + (dG/dtheta)' (I - dG/dd')^-1 grad_d L, its inverse
by a few terms of the Neumann series. The outer loss sees d on a share of each batch.

Numbers are the released code's; with 1% clean images a batch must be smaller and rounds more, so
that as many outer steps are made.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ngf import params, trail
from ngf.defenses import Clean, Purified
from ngf.defenses._steps import batches_of
from ngf.models import Classifier
from ngf.progress import track
from ngf.training import Batch

Objective = Callable[[Tensor], Tensor]  # of d, at the model's present parameters


def purify(
    model: Classifier,
    clean: Clean,
    *,
    rounds: int,
    batch_size: int,
    lr: float,
    inner_lr: float,
    radius: float,
    l2: float,
    terms: int,
    rate: float,
    share: float,
    shift: int,
    seed: int,
) -> Purified:
    """Adam (AMSGrad) on all parameters by hypergradients, in evaluation mode.

    Args:
        rounds: d is sought anew in each, in one pass; then one step a batch.
        inner_lr: of the pass that seeks d. radius: its largest L2 norm, pixel values in [0, 1].
        l2: weight of |d|^2. terms, rate: of the Neumann series, and r in it.
        share: of a batch's images, that the outer loss shows with d; at least one.
    """
    params.at_least(1, rounds=rounds, terms=terms)
    params.at_least(0, lr=lr, inner_lr=inner_lr, radius=radius, l2=l2, rate=rate)
    params.within("share", share, 0, 1)
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr, amsgrad=True)
    batches = batches_of(clean, batch_size=batch_size, shift=shift, seed=seed)
    generator = torch.Generator(clean.y_N.device).manual_seed(seed)
    steps = rounds * batches.per_epoch
    for number in track(range(rounds), "unlearn perturbations", rounds):
        drawn = list(batches.take(batches.per_epoch))
        d_CHW = universal(model, drawn, lr=inner_lr, l2=l2, radius=radius)
        for place, batch in enumerate(drawn, 1):
            chosen_B = _chosen(len(batch[1]), share, generator)
            gradients = hypergradient(
                partial(inner, model, batch, l2=l2),
                partial(outer, model, batch, chosen_B=chosen_B),
                d_CHW, parameters, rate=rate, terms=terms,
            )  # fmt: skip
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            trail.mark(model, number * batches.per_epoch + place, steps)
    return Purified(model, sum(p.numel() for p in parameters), steps)


def inner(model: Classifier, batch: Batch, d_CHW: Tensor, l2: float) -> Tensor:
    """g: what d minimises."""
    loss = torch.nn.functional.cross_entropy(model(batch[0] + d_CHW), batch[1])
    return l2 * d_CHW.square().sum() - loss


def outer(model: Classifier, batch: Batch, d_CHW: Tensor, chosen_B: Tensor) -> Tensor:
    """The loss with d on the chosen images."""
    x_BCHW = batch[0] + d_CHW * chosen_B.float()[:, None, None, None]
    return torch.nn.functional.cross_entropy(model(x_BCHW), batch[1])


def universal(
    model: Classifier, batches: Sequence[Batch], *, lr: float, l2: float, radius: float
) -> Tensor:
    """d [3, H, W]: one pass of descent on g from 0 on, cut to the radius."""
    d_CHW = torch.zeros_like(batches[0][0][0])
    for batch in batches:
        d_CHW.requires_grad_()
        (gradient_CHW,) = torch.autograd.grad(inner(model, batch, d_CHW, l2), d_CHW)
        d_CHW = d_CHW.detach() - lr * gradient_CHW
    return d_CHW * (radius / d_CHW.norm().clamp_min(1e-12)).clamp_max(1)


def hypergradient(
    inner: Objective,
    outer: Objective,
    d: Tensor,
    parameters: Sequence[Tensor],
    *,
    rate: float,
    terms: int,
) -> list[Tensor]:
    """Gradient of outer(d*(theta)) in theta, d* where inner is least, by `terms` of the series."""
    d = d.detach().requires_grad_()
    straight_d, *straight = torch.autograd.grad(
        outer(d), [d, *parameters], allow_unused=True, materialize_grads=True
    )
    (slope,) = torch.autograd.grad(inner(d), d, create_graph=True)
    step = d - rate * slope
    series = torch.zeros_like(d)
    for _ in range(terms):
        (moved,) = torch.autograd.grad(step, d, series, retain_graph=True)
        series = moved + straight_d
    around = torch.autograd.grad(
        step, parameters, series, allow_unused=True, materialize_grads=True
    )
    return [one + other for one, other in zip(straight, around, strict=True)]


def _chosen(count: int, share: float, generator: torch.Generator) -> Tensor:
    order_B = torch.rand(count, generator=generator, device=generator.device).argsort()
    return order_B < max(1, round(share * count))
