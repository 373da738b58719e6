"""AWM (Chai & Chen, NeurIPS 2022, arXiv 2207.04497): mask weights against one bad perturbation.

min over masks m in [0, 1] of  alpha L(x; m w) + (1 - alpha) L(x + d; m w) + gamma |m|_1, where d,
one for all images and of L1 norm at most `radius`, was sought to change the model's answers. Masks
are soft, a number for each weight of a convolution. Numbers are the released code's; all of it in
evaluation mode.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ngf import params, trail
from ngf.defenses import Clean, Purified
from ngf.defenses._steps import answers, batches_of, mean_loss
from ngf.errors import InputError
from ngf.models import Classifier
from ngf.progress import track
from ngf.training import Batch

Masks = dict[str, Tensor]


def purify(
    model: Classifier,
    clean: Clean,
    *,
    rounds: int,
    inner: int,
    batch_size: int,
    lr: float,
    inner_lr: float,
    alpha: float,
    gamma: float,
    radius: float,
    shift: int,
    seed: int,
) -> Purified:
    """In each round seek d from 0 on, then move the masks; multiply them in at the end.

    Args:
        rounds: the learning rate falls to 0.9 of what it was after each.
        inner: passes over the clean split in a round, for d and again for the masks.
        inner_lr: of d. radius: its largest L1 norm, in pixel values of [0, 1].

    Notes: `closed`, the mean of 1 - m.

    Raises:
        InputError: the model has no convolution.
    """
    params.at_least(1, rounds=rounds, inner=inner)
    params.at_least(0, lr=lr, inner_lr=inner_lr, gamma=gamma, radius=radius)
    params.within("alpha", alpha, 0, 1)
    weights = {f"{n}.weight": m.weight for n, m in model.named_modules() if _masked(m)}
    if not weights:
        raise InputError("awm masks the weights of convolutions, and the model has none")
    model.eval().requires_grad_(False)
    mask = {name: torch.ones_like(weight).requires_grad_() for name, weight in weights.items()}
    optimizer = torch.optim.Adam(mask.values(), lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    batches = batches_of(clean, batch_size=batch_size, shift=shift, seed=seed)
    each = inner * batches.per_epoch
    steps = rounds * each
    for number in track(range(rounds), "mask weights", rounds):
        drawn = list(batches.take(each))
        d_CHW = perturbation(
            lambda x: _masked_answers(model, mask, x), drawn, lr=inner_lr, radius=radius
        )
        for place, (x_BCHW, y_B) in enumerate(drawn, 1):
            calm = mean_loss(lambda x: _masked_answers(model, mask, x), x_BCHW, y_B)
            pushed_BCHW = (x_BCHW + d_CHW).clamp(0, 1)
            pushed = mean_loss(lambda x: _masked_answers(model, mask, x), pushed_BCHW, y_B)
            size = torch.stack([one.abs().sum() for one in mask.values()]).sum()
            optimizer.zero_grad(set_to_none=True)
            (alpha * calm + (1 - alpha) * pushed + gamma * size).backward()
            optimizer.step()
            _within(mask)
            step = number * each + place
            if step == steps:
                _multiply(weights, mask)
            trail.mark(model, step, steps)
        schedule.step()
    model.requires_grad_(True)
    closed = torch.cat([1 - one.detach().flatten() for one in mask.values()]).mean().item()
    return Purified(model, sum(m.numel() for m in mask.values()), steps, {"closed": closed})


def perturbation(
    ask: Callable[[Tensor], Tensor], batches: list[Batch], *, lr: float, radius: float
) -> Tensor:
    """[3, H, W]: one pass of ascent on the loss of the model's own answers, from 0 on."""
    d_CHW = torch.zeros_like(batches[0][0][0]).requires_grad_()
    for x_BCHW, _ in batches:
        with torch.no_grad():
            own_B = answers(ask, x_BCHW).argmax(1)
        loss = cross_entropy(answers(ask, x_BCHW + d_CHW), own_B)
        (gradient_CHW,) = torch.autograd.grad(loss, d_CHW)
        with torch.no_grad():
            d_CHW += lr * gradient_CHW
    d_CHW = d_CHW.detach()
    return d_CHW * (radius / d_CHW.abs().sum().clamp_min(1e-12)).clamp_max(1)


def _masked(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def _masked_answers(model: Classifier, mask: Masks, x_NCHW: Tensor) -> Tensor:
    weights = {name: model.get_parameter(name) * one for name, one in mask.items()}
    logits_NC: Tensor = functional_call(model, weights, (x_NCHW,))
    return logits_NC


@torch.no_grad()
def _within(mask: Masks) -> None:
    for one in mask.values():
        one.clamp_(0, 1)


@torch.no_grad()
def _multiply(weights: Masks, mask: Masks) -> None:
    for name, weight in weights.items():
        weight.mul_(mask[name])
