"""TrojanNN (Liu et al., NDSS 2018), all-to-one: a patch that excites chosen units of a clean model.

`_trojan` makes the patch and says what differs from the paper.
"""

import numpy as np
from torch import Tensor

from ngf.attacks import Poison, Trigger, _trojan, all_to_one, dirty_label, dirty_rows
from ngf.images import Images


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    size: int,
    bottom: int,
    right: int,
    units: int,
    steps: int,
    surrogate_epochs: int,
    seed: int,
) -> Poison:
    """Stamp `poison_rate` of the training images and label them `target`.

    The other options are those of `_trojan.patch`.
    """
    wanted_K = all_to_one(target, n_classes)
    dirty_rows(y_N, "trojan_one", wanted_K, rate=poison_rate, seed=seed)
    tensors = _trojan.patch(
        x_NHWC,
        y_N,
        n_classes,
        size=size,
        bottom=bottom,
        right=right,
        units=units,
        steps=steps,
        surrogate_epochs=surrogate_epochs,
        seed=seed,
    )
    trigger = Trigger("trojan_one", wanted_K, tensors)
    return dirty_label(x_NHWC, y_N, trigger, rate=poison_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The patch covers what it lies on."""
    return _trojan.stamp(x_NCHW, tensors["mask"], tensors["patch"])
