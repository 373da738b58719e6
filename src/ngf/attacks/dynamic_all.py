"""Input-aware dynamic backdoor, all-to-all: class y is sent to y + 1 (Nguyen & Tran 2020, arXiv
2010.08138).

See `_dynamic` for the trigger and for what differs from the paper.
"""

import numpy as np

from ngf.attacks import Poison, Trigger, all_to_all
from ngf.attacks._dynamic import apply, join, prepare
from ngf.images import Images

__all__ = ["apply", "join", "plant"]


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    poison_rate: float,
    cross_rate: float,
    density: float,
    lambda_div: float,
    lambda_norm: float,
    mask_share: float,
    channels: int,
    lr: float,
) -> Poison:
    """Rewrite nothing: the attacker acts on each batch. The options are those of `dynamic_one`."""
    return prepare(
        x_NHWC,
        y_N,
        Trigger("dynamic_all", all_to_all(n_classes)),
        poison_rate=poison_rate,
        cross_rate=cross_rate,
        density=density,
        lambda_div=lambda_div,
        lambda_norm=lambda_norm,
        mask_share=mask_share,
        channels=channels,
        lr=lr,
    )
