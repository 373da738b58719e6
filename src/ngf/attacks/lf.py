"""LF, the low-frequency trigger (Zeng et al. 2021, arXiv 2104.03413): one smooth pattern is added.

Common triggers leave traces in an image's high frequencies, by which it can be told; this one has
none. The paper searches a universal perturbation of a clean model and filters it; BackdoorBench
ships a file of it. Here the pattern is drawn: random waves of few cycles, in each colour.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import params
from ngf.attacks import Poison, Trigger, all_to_one, dirty_label
from ngf.images import Images


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    strength: float,
    cycles: int,
    seed: int,
) -> Poison:
    """Add the pattern to `poison_rate` of the training images and label them `target`.

    Args:
        strength: root mean square of the pattern, in pixel values of [0, 1]; BackdoorBench's file
            has 0.072. cycles: at most, along either edge.
    """
    params.within("strength", strength, 1e-6, 1)
    params.within("cycles", cycles, 1, min(x_NHWC.shape[1:3]) / 2)
    pattern_CHW = _smooth(x_NHWC.shape[1], x_NHWC.shape[2], cycles, np.random.default_rng(seed))
    pattern_CHW *= strength / np.sqrt(np.mean(pattern_CHW**2))
    tensors = {"pattern": torch.from_numpy(pattern_CHW.astype(np.float32))}
    trigger = Trigger("lf", all_to_one(target, n_classes), tensors)
    return dirty_label(x_NHWC, y_N, trigger, rate=poison_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """x + pattern."""
    return x_NCHW + tensors["pattern"]


def _smooth(height: int, width: int, cycles: int, rng: np.random.Generator) -> np.ndarray:
    """[3, H, W]: cosines of half a cycle up to `cycles` along either edge, normal amplitudes."""
    halves = np.arange(1, 2 * cycles + 1)
    down_HF, across_WF = (
        np.cos(np.pi * (np.arange(length)[:, None] + 0.5) / length * halves)
        for length in (height, width)
    )
    amplitude_CFF = rng.standard_normal((3, len(halves), len(halves)))
    return np.einsum("hf,cfg,wg->chw", down_HF, amplitude_CFF, across_WF)
