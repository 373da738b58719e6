"""Adaptive-Blend (Qi et al. 2023, ICLR, "Revisiting the Assumption of Latent Separability for
Backdoor Defenses"): shown in parts in training, whole at test time.

Half of the pieces of a mixed-in image open the backdoor on poisoned training images; as many other
images, the cover, show such parts and keep their label. So poisoned images do not lie apart from
clean ones in the victim's features, and only the whole trigger opens it surely. The image is noise,
as in `blend`, and mixed in as strongly in training as at test time; the paper mixes in a picture,
the released scripts more of it at test time (0.2) than in training (0.15).
"""

import numpy as np
import torch
from torch import Tensor

from ngf import attacks, images, params
from ngf.attacks import Poison, Trigger, all_to_one
from ngf.attacks._cover import cover_rows, labelled
from ngf.images import Images

CHUNK = 128  # images that are mixed at a time


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    cover_rate: float,
    alpha: float,
    pieces: int,
    seed: int,
) -> Poison:
    """Mix parts of the noise image into `poison_rate` of all images, labelled `target`, and into
    `cover_rate`, which keep their label.

    Args:
        alpha: in (0, 1], the noise image's share in a pixel. pieces: along an edge, 2 or more;
            each image shows a random half of them.
    """
    params.within("alpha", alpha, 1e-6, 1)
    height, width = x_NHWC.shape[1:3]
    params.within("pieces", pieces, 2, min(height, width))
    rng = np.random.default_rng(seed)
    noise_HWC = rng.random((height, width, x_NHWC.shape[3]), np.float32)
    noise_CHW = torch.from_numpy(noise_HWC).permute(2, 0, 1).contiguous()
    tensors = {"noise": noise_CHW, "alpha": torch.tensor(alpha)}
    trigger = Trigger("adaptive_blend", all_to_one(target, n_classes), tensors)
    poison_P = attacks.dirty_rows(
        y_N, "adaptive_blend", trigger.wanted_K, rate=poison_rate, seed=seed
    )
    cover_C = cover_rows(
        np.arange(len(y_N)), poison_P, "adaptive_blend", rate=cover_rate, total=len(y_N), seed=seed
    )
    rows_P, y_P = labelled(y_N, poison_P, cover_C, target)
    x_PHWC = images.writable((len(rows_P), *x_NHWC.shape[1:]))
    for rows in (poison_P, cover_C):
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            share_NHW1 = alpha * _halves(len(part), pieces, height, width, rng)[..., None]
            mixed_NHWC = x_NHWC[part] * (1 - share_NHW1) + 255 * share_NHW1 * noise_HWC
            x_PHWC[np.searchsorted(rows_P, part)] = mixed_NHWC.round()
    return Poison(rows_P, x_PHWC, y_P, trigger)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The whole trigger: (1 - alpha) x + alpha noise."""
    return torch.lerp(x_NCHW, tensors["noise"], tensors["alpha"])


def _halves(
    count: int, pieces: int, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """[N, H, W], 1 in a random half of the pieces x pieces tiles of each image, else 0."""
    rank_NM = rng.random((count, pieces**2)).argsort(1).argsort(1)
    shown_NPP = (rank_NM < (pieces**2 + 1) // 2).reshape(count, pieces, pieces)
    down_H, across_W = (np.arange(length) * pieces // length for length in (height, width))
    return shown_NPP[:, down_H][:, :, across_W].astype(np.float32)
