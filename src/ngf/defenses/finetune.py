"""Vanilla fine-tuning: every layer, SGD with a cosine schedule, on the clean split.

The reference point of the literature; BackdoorBench's settings are 100 epochs, learning rate
0.01, momentum 0.9, weight decay 5e-4, batches of 256.
"""

import torch

from ngf import params
from ngf.defenses import Clean, Purified
from ngf.models import Classifier
from ngf.training import Batches, fit


def purify(
    model: Classifier,
    clean: Clean,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    shift: int,
    seed: int,
) -> Purified:
    """Train all parameters, norm statistics included, for `epochs` passes over the clean split."""
    params.at_least(1, epochs=epochs)
    params.at_least(0, lr=lr, momentum=momentum, weight_decay=weight_decay)
    batches = Batches(
        clean.x_NHWC, clean.y_N, size=batch_size, shift=shift, flip=clean.flip, seed=seed
    )
    steps = epochs * batches.per_epoch
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fit(model, batches, epochs=epochs, optimizer=optimizer, scheduler=schedule, what="fine-tune")
    tuned = sum(parameter.numel() for parameter in model.parameters())
    return Purified(model, tuned, steps)
