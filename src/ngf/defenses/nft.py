"""NFT (Karim et al., ECCV 2024, arXiv 2407.10052): soft masks on neurons, learned on mixed images.

min over masks m of  L_mixup(m w) + penalty |1 - m|_1 / n, m within [low exp(-decay l), 1] in the
l-th layer, w the scales of norms and n the clean images of a class. Numbers are the released
code's; its learning rate falls to 0.02 by a schedule that is stepped every 200 of 1000 steps, here
one cosine spans all steps.
"""

import math

import torch
from torch import Tensor
from torch.func import functional_call

from ngf import masks, params
from ngf.defenses import Clean, Purified
from ngf.defenses._steps import answers, batches_of, descend, sgd
from ngf.models import Classifier, head


def purify(
    model: Classifier,
    clean: Clean,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    momentum: float,
    penalty: float,
    low: float,
    decay: float,
    shift: int,
    seed: int,
) -> Purified:
    """Learn masks and multiply them in; batch norm's statistics follow the images.

    Args:
        penalty: weight of the masks' distance from 1.
        low, decay: the smallest mask of layer l is low exp(-decay l).

    Notes: `closed`, the mean of 1 - m.
    """
    params.at_least(1, steps=steps)
    params.at_least(0, lr=lr, momentum=momentum, penalty=penalty, decay=decay)
    params.within("low", low, 0, 1)
    layers = masks.neurons(model)
    mask = {name: one.requires_grad_() for name, one in masks.filled(layers, 1.0).items()}
    classes = head(model).out_features
    weight = penalty * classes / len(clean.y_N)
    generator = torch.Generator(clean.y_N.device).manual_seed(seed)
    notes: dict[str, float] = {}

    def loss(x_BCHW: Tensor, y_B: Tensor) -> Tensor:
        changed = masks.scaled(layers, mask)
        away = torch.stack([(1 - one).abs().sum() for one in mask.values()]).sum()
        mixed_BCHW, target_BC = mixed(x_BCHW, y_B, classes, generator)
        logits_BC = answers(lambda x: functional_call(model, changed, (x,)), mixed_BCHW)
        plain = torch.nn.functional.cross_entropy(logits_BC, target_BC)
        return plain + weight * away

    @torch.no_grad()
    def within() -> None:
        for number, one in enumerate(mask.values(), 1):
            one.clamp_(low * math.exp(-decay * number), 1)

    def finish() -> None:
        masks.apply(layers, {name: one.detach() for name, one in mask.items()})
        away = torch.cat([1 - one.detach().flatten() for one in mask.values()])
        notes["closed"] = round(away.mean().item(), 4)

    batches = batches_of(clean, batch_size=batch_size, shift=shift, seed=seed)
    optimizer, schedule = sgd(mask.values(), steps, lr=lr, momentum=momentum)
    model.train().requires_grad_(False)
    descend(
        model, batches, steps, loss, optimizer, schedule, after=within, finish=finish,
        what="masks on mixed images",
    )  # fmt: skip
    model.requires_grad_(True)
    return Purified(model.eval(), sum(m.numel() for m in mask.values()), steps, notes)


def mixed(
    x_BCHW: Tensor, y_B: Tensor, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """MixUp (Zhang et al. 2018, arXiv 1710.09412): one share, uniform in [0, 1], for the batch."""
    share = torch.rand((), generator=generator, device=generator.device)
    order_B = torch.randperm(len(y_B), generator=generator, device=generator.device)
    target_BC = torch.nn.functional.one_hot(y_B, classes).float()
    return (
        share * x_BCHW + (1 - share) * x_BCHW[order_B],
        share * target_BC + (1 - share) * target_BC[order_B],
    )
