"""ANP (Wu & Wang, NeurIPS 2021, arXiv 2110.14430): prune the neurons that a small push turns bad.

min over masks m in [0, 1] of  alpha L(m w, b) + (1 - alpha) max over |d|, |e| <= eps of
L((m + d) w, (1 + e) b), on clean images, w and b the scales and shifts of norms. Neurons whose mask
falls below a threshold are pruned (w = 0).

The published threshold comes from the poisoned test set or is given by hand. Here it is the largest
for which accuracy on the clean split falls by at most `max_drop`. The perturbations are kept within
eps; the released code lets a random start and a step add up to twice that.
"""

import torch
from torch import Tensor
from torch.func import functional_call

from ngf import masks, params
from ngf.defenses import Clean, Purified
from ngf.defenses._steps import batches_of, descend, mean_loss
from ngf.defenses._thresholds import prune_by_threshold
from ngf.masks import Layer, PerLayer
from ngf.models import Classifier
from ngf.norms import statistics_held


def purify(
    model: Classifier,
    clean: Clean,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    momentum: float,
    eps: float,
    inner_steps: int,
    alpha: float,
    max_drop: float,
    shift: int,
    seed: int,
) -> Purified:
    """Learn the masks, then prune.

    Args:
        eps: largest relative perturbation of a scale or shift. inner_steps: of eps / inner_steps.
        alpha: weight of the loss without perturbation.
        max_drop: of accuracy on the clean split, in [0, 1].

    Notes: `pruned`, how many neurons; `threshold`, 0 where nothing could be pruned.
    """
    params.at_least(1, steps=steps, inner_steps=inner_steps)
    params.at_least(0, lr=lr, momentum=momentum, eps=eps)
    params.within("alpha", alpha, 0, 1)
    params.within("max_drop", max_drop, 0, 1)
    layers = masks.neurons(model)
    mask = {name: one.requires_grad_() for name, one in masks.filled(layers, 1.0).items()}
    generator = torch.Generator(clean.y_N.device).manual_seed(seed)
    notes: dict[str, float] = {}

    def loss(x_BCHW: Tensor, y_B: Tensor) -> Tensor:
        d, e = perturbations(
            model, layers, mask, (x_BCHW, y_B), eps=eps, steps=inner_steps, generator=generator
        )
        pushed = masks.scaled(layers, {n: mask[n] + d[n] for n in mask}, _plus_one(e))
        calm = masks.scaled(layers, mask)
        return alpha * _loss(model, calm, x_BCHW, y_B) + (1 - alpha) * _loss(
            model, pushed, x_BCHW, y_B
        )

    def within() -> None:
        with torch.no_grad():
            for one in mask.values():
                one.clamp_(0, 1)

    def prune() -> None:
        notes.update(prune_by_threshold(model, layers, mask, clean, max_drop))

    batches = batches_of(clean, batch_size=batch_size, shift=shift, seed=seed)
    optimizer = torch.optim.SGD(mask.values(), lr, momentum)
    model.train().requires_grad_(False)
    with statistics_held(model):
        descend(
            model, batches, steps, loss, optimizer, after=within, finish=prune,
            what="adversarial masks",
        )  # fmt: skip
    model.requires_grad_(True)
    return Purified(model.eval(), sum(m.numel() for m in mask.values()), steps, notes)


def perturbations(
    model: Classifier,
    layers: dict[str, Layer],
    mask: PerLayer,
    batch: tuple[Tensor, Tensor],
    *,
    eps: float,
    steps: int,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(d, e): a random start in [-eps, eps], and sign ascent on the loss within it."""
    held = {name: one.detach() for name, one in mask.items()}
    d, e = ({name: _uniform(one, eps, generator) for name, one in held.items()} for _ in range(2))
    for _ in range(steps):
        pushed = masks.scaled(layers, {n: held[n] + d[n] for n in held}, _plus_one(e))
        loss = _loss(model, pushed, *batch)
        both = [*d.values(), *e.values()]
        gradients = torch.autograd.grad(loss, both, allow_unused=True)
        with torch.no_grad():
            for one, gradient in zip(both, gradients, strict=True):
                if gradient is not None:  # a layer without shift has no use for its e
                    one.add_(eps / steps * gradient.sign()).clamp_(-eps, eps)
    return {n: t.detach() for n, t in d.items()}, {n: t.detach() for n, t in e.items()}


def _uniform(like: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=generator, device=like.device)
    return ((2 * drawn - 1) * eps).requires_grad_()


def _plus_one(e: PerLayer) -> dict[str, Tensor]:
    return {name: 1 + one for name, one in e.items()}


def _loss(model: Classifier, changed: dict[str, Tensor], x_BCHW: Tensor, y_B: Tensor) -> Tensor:
    return mean_loss(lambda x: functional_call(model, changed, (x,)), x_BCHW, y_B)
