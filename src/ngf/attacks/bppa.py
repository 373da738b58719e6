"""BppAttack (Wang et al. 2022, arXiv 2205.13383): few bits per pixel, that is few colour levels.

The trigger is the reduced colour depth itself, on request with Floyd-Steinberg dithering, which
hands the error of a pixel on to the neighbours still to come. Levels do not depend on the image
size. The attacker acts in training, as in the paper: negatives, which carry what quantisation
changed in another image, keep their label. They show the same kind of noise off the levels.

What differs from the paper: both are added to the batch instead of replacing some of it; training
starts with fewer levels (`head_start`); a negative's noise comes from another image of the batch,
not of the whole training set; and augmentation comes first.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import params
from ngf.attacks import Attacker, Poison, Trigger, all_to_one, untouched
from ngf.attacks._in_batch import InBatch, shares
from ngf.images import Images
from ngf.models import Classifier

BLOCK = 256  # images dithered at once: the working copy is three times as large as they are


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    neg_ratio: float,
    head_start: float,
    squeeze_num: int,
    dithering: bool,
) -> Poison:
    """Nothing is drawn; `join` adds quantised copies labelled `target` to every batch.

    Args:
        poison_rate: quantised copies, as a share of the batch.
        neg_ratio: negatives per triggered image.
        head_start: how many times as high the steps between levels are when training starts.
        squeeze_num: levels of each colour, 2 to 255.
    """
    params.within("squeeze_num", squeeze_num, 2, 255)
    plan = shares(poison_rate, poison_rate * neg_ratio, "neg_ratio", head_start)
    tensors = {"levels": torch.tensor(float(squeeze_num)), "dithering": torch.tensor(+dithering)}
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    trigger = Trigger("bppa", all_to_one(target, n_classes), tensors)
    return untouched(x_NHWC, y_N, trigger, **plan)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The nearest of the levels, or the dithered one."""
    top = float(tensors["levels"]) - 1
    if not tensors["dithering"]:
        return (x_NCHW * top).round() / top
    blocks = [_dither(x_BCHW, top) for x_BCHW in x_NCHW.split(BLOCK)]
    return torch.cat(blocks) if blocks else x_NCHW


def join(planted: Poison, model: Classifier, *, steps: int, seed: int) -> Attacker:
    """Triggered images and negatives in every batch."""
    return InBatch(planted, model, apply, _negatives, _strengthen, steps=steps, seed=seed)


def _negatives(
    x_NCHW: Tensor, other_NCHW: Tensor, tensors: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    """x plus what quantisation changes in another image."""
    return x_NCHW + apply(other_NCHW, other_NCHW, tensors) - other_NCHW


def _strengthen(tensors: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Steps between levels that are `factor` times as high, but two levels at least."""
    steps = ((tensors["levels"] - 1) / factor).round().clamp_min(1)
    return {**tensors, "levels": steps + 1}


def _dither(x_NCHW: Tensor, top: float) -> Tensor:
    """Floyd & Steinberg 1976: 7/16 of the error go right, 3, 5 and 1 to the three pixels below.

    A pixel waits for its left neighbour and for the one above to the right, so all pixels of equal
    t = column + 2 row are independent: W + 2H steps on whole batches instead of H W.
    """
    count, channels, height, width = x_NCHW.shape
    lanes = count * channels
    # wave_TRL[t, r] holds pixel (r, t - 2 r) of every lane; a rim takes errors that leave the image
    waves, rows = width + 2 * height, height + 1
    wave_TRL = x_NCHW.new_zeros(waves + 1, rows, lanes)
    pixel_HWL = wave_TRL.as_strided(
        (height, width, lanes), ((2 * rows + 1) * lanes, rows * lanes, 1)
    )
    pixel_HWL.copy_(x_NCHW.permute(2, 3, 0, 1).reshape(height, width, lanes) * top)
    for t in range(width + 2 * (height - 1)):
        low, high = max(0, (t - width) // 2 + 1), min(height, t // 2 + 1)
        here, below = slice(low, high), slice(low + 1, high + 1)
        exact_RL = wave_TRL[t, here]
        level_RL = exact_RL.round().clamp_(0, top)
        error_RL = (exact_RL - level_RL) / 16
        exact_RL.copy_(level_RL)
        wave_TRL[t + 1, here].add_(error_RL, alpha=7)
        wave_TRL[t + 1, below].add_(error_RL, alpha=3)
        wave_TRL[t + 2, below].add_(error_RL, alpha=5)
        wave_TRL[t + 3, below].add_(error_RL, alpha=1)
    level_HWNC = pixel_HWL.reshape(height, width, count, channels)
    return level_HWNC.permute(2, 3, 0, 1) / top
