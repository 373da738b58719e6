"""No attack: the row that every defense must leave alone."""

import numpy as np
from torch import Tensor

from ngf.attacks import Poison, Trigger, untouched
from ngf.images import Images


def plant(x_NHWC: Images, y_N: np.ndarray, n_classes: int) -> Poison:
    """Rewrite nothing."""
    return untouched(x_NHWC, y_N, Trigger("benign"))


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The images themselves."""
    return x_NCHW
