"""Input-aware dynamic backdoor, all-to-one (Nguyen & Tran 2020, arXiv 2010.08138).

See `_dynamic` for the trigger and for what differs from the paper.
"""

import numpy as np

from ngf.attacks import Poison, Trigger, all_to_one
from ngf.attacks._dynamic import apply, join, prepare
from ngf.images import Images

__all__ = ["apply", "join", "plant"]


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    cross_rate: float,
    density: float,
    lambda_div: float,
    lambda_norm: float,
    mask_share: float,
    channels: int,
    lr: float,
) -> Poison:
    """Rewrite nothing: the attacker acts on each batch.

    Args:
        poison_rate: share of a batch that wears its own trigger and is labelled `target`.
        cross_rate: share that wears another image's trigger and keeps its label.
        density: share of the image above which a mask is penalised.
        lambda_div: weight of the diversity loss. lambda_norm: of the mask's density.
        mask_share: share of the steps, the first ones, in which the mask network learns.
        channels: width of both networks. lr: their learning rate (Adam).
    """
    return prepare(
        x_NHWC,
        y_N,
        Trigger("dynamic_one", all_to_one(target, n_classes)),
        poison_rate=poison_rate,
        cross_rate=cross_rate,
        density=density,
        lambda_div=lambda_div,
        lambda_norm=lambda_norm,
        mask_share=mask_share,
        channels=channels,
        lr=lr,
    )
