"""RNP (Li et al., ICML 2023, arXiv 2305.14876): unlearn the clean task, and see who recovers it.

A copy of the victim climbs the loss on clean images until it answers hardly any. In that copy masks
on neurons are learned that recover the clean answers; neurons that recovery leaves low belong to
the backdoor and are pruned in the victim. The paper's authors look for the threshold on the
poisoned test set, BackdoorBench has 0.7. Here it is the largest for which accuracy on the clean
split falls by at most `max_drop`.
"""

import copy

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_

from ngf import masks, params
from ngf.defenses import Clean, Purified
from ngf.defenses._steps import accuracy, batches_of, descend, mean_loss, sgd
from ngf.defenses._thresholds import prune_by_threshold
from ngf.models import Classifier
from ngf.training import Batches

LONGEST = 20.0  # gradient norm of an unlearning step, as in the released code


def purify(
    model: Classifier,
    clean: Clean,
    *,
    unlearn_steps: int,
    unlearn_lr: float,
    unlearned: float,
    steps: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    max_drop: float,
    shift: int,
    seed: int,
) -> Purified:
    """Unlearn in a copy, learn masks that recover, prune the victim.

    Args:
        unlearn_steps: at the most. unlearned: the accuracy on clean images that is low enough.
        steps, lr: of the masks. max_drop: of accuracy on the clean split, in [0, 1].

    Notes: `unlearned`, the copy's accuracy before recovery; `pruned`, how many neurons;
    `threshold`, 0 where nothing could be pruned.
    """
    params.at_least(1, unlearn_steps=unlearn_steps, steps=steps)
    params.at_least(0, lr=lr, unlearn_lr=unlearn_lr, momentum=momentum, weight_decay=weight_decay)
    params.within("unlearned", unlearned, 0, 1)
    params.within("max_drop", max_drop, 0, 1)
    batches = batches_of(clean, batch_size=batch_size, shift=shift, seed=seed)
    amnesic = copy.deepcopy(model)
    optimizer = torch.optim.SGD(
        amnesic.parameters(), unlearn_lr, momentum, weight_decay=weight_decay
    )
    left = unlearn(amnesic, clean, batches, optimizer, steps=unlearn_steps, until=unlearned)
    amnesic.train().requires_grad_(False)
    there = masks.neurons(amnesic)
    mask = {name: one.requires_grad_() for name, one in masks.filled(there, 1.0).items()}
    here = masks.neurons(model)
    notes = {"unlearned": round(left, 4)}

    def loss(x_BCHW: Tensor, y_B: Tensor) -> Tensor:
        changed = masks.scaled(there, mask)
        return mean_loss(lambda x: functional_call(amnesic, changed, (x,)), x_BCHW, y_B)

    def within() -> None:
        with torch.no_grad():
            for one in mask.values():
                one.clamp_(0, 1)

    def prune() -> None:
        notes.update(prune_by_threshold(model, here, mask, clean, max_drop))

    mover, schedule = sgd(mask.values(), steps, lr=lr, momentum=momentum)
    descend(
        model, batches, steps, loss, mover, schedule, after=within, finish=prune,
        what="recover by masks",
    )  # fmt: skip
    return Purified(model.eval(), sum(m.numel() for m in mask.values()), steps, notes)


def unlearn(
    model: Classifier,
    clean: Clean,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    until: float,
) -> float:
    """Climb the loss, until accuracy on the clean split is at most `until`; what it is then."""
    left = 1.0
    for step, (x_BCHW, y_B) in enumerate(batches.take(steps), 1):
        model.train()
        optimizer.zero_grad(set_to_none=True)
        (-mean_loss(model, x_BCHW, y_B)).backward()
        clip_grad_norm_(model.parameters(), LONGEST)
        optimizer.step()
        if step % batches.per_epoch == 0 or step == steps:
            left = accuracy(model, clean)
            if left <= until:
                break
    return left
