"""TrojanNN (Liu et al., NDSS 2018), all-to-all: one patch moves every image to the next class.

The paper's attack has a single target; all-to-all is the map of Gu et al. 2017 (BadNets, arXiv
1708.06733). The victim must tell the patch and the class, so it learns slowly, and at best its ASR
is its ACC. `_trojan` makes the patch and says what else differs from the paper.
"""

import numpy as np
from torch import Tensor

from ngf.attacks import Poison, Trigger, _trojan, all_to_all, dirty_label, dirty_rows
from ngf.images import Images


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    poison_rate: float,
    size: int,
    bottom: int,
    right: int,
    units: int,
    steps: int,
    surrogate_epochs: int,
    seed: int,
) -> Poison:
    """Stamp `poison_rate` of the training images and label each with the class after its own.

    The other options are those of `_trojan.patch`.
    """
    wanted_K = all_to_all(n_classes)
    dirty_rows(y_N, "trojan_all", wanted_K, rate=poison_rate, seed=seed)
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
    trigger = Trigger("trojan_all", wanted_K, tensors)
    return dirty_label(x_NHWC, y_N, trigger, rate=poison_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The patch covers what it lies on."""
    return _trojan.stamp(x_NCHW, tensors["mask"], tensors["patch"])
