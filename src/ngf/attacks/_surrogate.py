"""A clean model of the attacker's own, for triggers that are made against one.

The attacker trains it on the data that he is about to poison. It is a small network: it need not be
the victim's architecture, and is thrown away.
"""

from __future__ import annotations

import numpy as np
import torch

from ngf import device, models, training
from ngf.images import Images, on_device
from ngf.models import Classifier

NET = {"depth": 18, "width": 16, "stem_stride": 2}
MEAN, STD = [0.5] * 3, [0.25] * 3
RECIPE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
BATCH, SHIFT = 128, 1


def clean_model(
    x_NHWC: Images, y_N: np.ndarray, n_classes: int, *, epochs: int, seed: int
) -> Classifier:
    """A classifier trained on the clean images [N, H, W, 3], in evaluation mode."""
    where = device.deterministic(seed)
    card = {
        "arch": "preact_resnet",
        "options": NET,
        "classes": [str(label) for label in range(n_classes)],
        "input_CHW": [3, *x_NHWC.shape[1:3]],
    }
    model = models.build(card, MEAN, STD).to(where)
    batches = training.Batches(
        on_device(x_NHWC, where),
        torch.tensor(y_N, device=where),
        size=BATCH,
        shift=SHIFT,
        flip=False,
        seed=seed,
    )
    optimizer, schedule = training.one_cycle(model, steps=epochs * batches.per_epoch, **RECIPE)
    training.fit(
        model,
        batches,
        epochs=epochs,
        optimizer=optimizer,
        scheduler=schedule,
        what="attacker's clean model",
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model
