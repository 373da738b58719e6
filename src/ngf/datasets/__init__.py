"""Data sets. A plug-in has one function, `load(*, <options>) -> Source`.

`prepare` carves the defender's clean split out of the training images that `load` returns.
"""

from dataclasses import dataclass

import numpy as np

from ngf.images import Images


@dataclass(frozen=True)
class Source:
    """A data set as its plug-in found it. x: RGB, see `ngf.images`; y: int64 [N].

    flip: whether a mirrored image keeps its class. track_N: of the training images, which sequence
    of frames each is of; images of one sequence are near duplicates.
    """

    x_train_NHWC: Images
    y_train_N: np.ndarray
    x_test_NHWC: Images
    y_test_N: np.ndarray
    classes: tuple[str, ...]
    flip: bool = False
    track_N: np.ndarray | None = None


@dataclass(frozen=True)
class Split:
    """One prepared split. x: RGB on disk, see `ngf.images`; y: int64 [N].

    mean, std: of the train split's pixels in [0, 1], one number a channel.
    flip: whether a mirrored image keeps its class.
    """

    x_NHWC: Images
    y_N: np.ndarray
    dataset: str
    classes: tuple[str, ...]
    mean: list[float]
    std: list[float]
    flip: bool
