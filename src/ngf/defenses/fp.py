"""Fine-pruning (Liu et al., RAID 2018, arXiv 1805.12185): prune what clean images leave idle, tune.

The features that reach the classifier are pruned from the least active on, as long as accuracy
falls by at most `max_drop`; then everything is fine-tuned while they stay closed. Settings are
BackdoorBench's. It stops by accuracy on the *test* split; here the clean split decides.
"""

from functools import partial

import torch
from torch import Tensor, nn

from ngf import params
from ngf.defenses import Clean, Purified
from ngf.defenses._steps import batches_of, descend, mean_loss, sgd
from ngf.feature_map import features
from ngf.models import Classifier, head
from ngf.training import pixels

LEVELS = 100  # steps from no feature pruned to all


def purify(
    model: Classifier,
    clean: Clean,
    *,
    max_drop: float,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    shift: int,
    seed: int,
) -> Purified:
    """Prune inputs of the classifier, then train all that is left.

    Args:
        max_drop: of accuracy on the clean split, a share of it, in [0, 1].

    Notes: `pruned`, how many features.
    """
    params.within("max_drop", max_drop, 0, 1)
    params.at_least(1, epochs=epochs)
    params.at_least(0, lr=lr, momentum=momentum, weight_decay=weight_decay)
    layer = head(model.eval())
    idle_D = idle(layer, features(model, pixels(clean.x_NHWC)), clean.y_N, max_drop)
    with torch.no_grad():
        layer.weight[:, idle_D] = 0
    batches = batches_of(clean, batch_size=batch_size, shift=shift, seed=seed)
    steps = epochs * batches.per_epoch
    optimizer, schedule = sgd(
        model.parameters(), steps, lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    # Without a gradient a zero stays one: momentum and weight decay have nothing to move.
    held = layer.weight.register_hook(lambda gradient: gradient.masked_fill(idle_D, 0))
    try:
        descend(
            model.train(), batches, steps, partial(mean_loss, model), optimizer, schedule,
            what="fine-tune what is left",
        )  # fmt: skip
    finally:
        held.remove()
    pruned = int(idle_D.sum())
    count = sum(p.numel() for p in model.parameters()) - pruned * layer.out_features
    return Purified(model.eval(), count, steps, {"pruned": pruned})


@torch.no_grad()
def idle(layer: nn.Linear, h_ND: Tensor, y_N: Tensor, max_drop: float) -> Tensor:
    """Which features to prune [D]: the largest of `LEVELS` prefixes of the least active ones.

    A feature's activity is its mean size over the images. The features are computed once, so a
    level costs a matrix product.
    """
    rank_D = h_ND.abs().mean(0).argsort().argsort()
    least = (1 - max_drop) * _accuracy(layer, h_ND, y_N)
    kept_D = torch.zeros_like(rank_D, dtype=torch.bool)
    for level in range(1, LEVELS + 1):
        idle_D = rank_D < level * len(rank_D) // LEVELS
        if _accuracy(layer, h_ND.masked_fill(idle_D, 0), y_N) < least:
            break
        kept_D = idle_D
    return kept_D


def _accuracy(layer: nn.Linear, h_ND: Tensor, y_N: Tensor) -> float:
    return (layer(h_ND).argmax(1) == y_N).float().mean().item()
