"""Adaptive-Blend (Qi et al. 2023, ICLR, "Revisiting the Assumption of Latent Separability for
Backdoor Defenses"): shown in parts in training, whole at test time.

Half of the pieces of a mixed-in image open the backdoor on poisoned training images; as many other
images, the cover, show such parts and keep their label. So poisoned images do not lie apart from
clean ones in the victim's features, and only the whole trigger opens it surely. The image is noise,
as in `blend`; the paper mixes in a picture.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import attacks, params
from ngf.attacks import Poison, Trigger, all_to_one
from ngf.attacks._cover import cover_rows, covered
from ngf.images import Images


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
        alpha: in (0, 1], the noise image's share in a pixel. pieces: along an edge; each image
            shows a random half of them.
    """
    params.within("alpha", alpha, 1e-6, 1)
    height, width = x_NHWC.shape[1:3]
    params.within("pieces", pieces, 1, min(height, width))
    rng = np.random.default_rng(seed)
    noise_HWC = rng.random((height, width, x_NHWC.shape[3]), np.float32)
    noise_CHW = torch.from_numpy(noise_HWC).permute(2, 0, 1).contiguous()
    tensors = {"noise": noise_CHW, "alpha": torch.tensor(alpha)}
    trigger = Trigger("adaptive_blend", all_to_one(target, n_classes), tensors)
    rows_P = attacks.dirty_rows(
        y_N, "adaptive_blend", trigger.wanted_K, rate=poison_rate, seed=seed
    )
    everyone_N = np.arange(len(y_N))
    rows_C = cover_rows(
        everyone_N, rows_P, "adaptive_blend", rate=cover_rate, total=len(y_N), seed=seed
    )

    def parts(rows: np.ndarray) -> np.ndarray:
        mask_NHW = _halves(len(rows), pieces, height, width, rng)
        share_NHWC = (alpha * mask_NHW)[..., None]
        mixed_NHWC = x_NHWC[rows] * (1 - share_NHWC) + 255 * share_NHWC * noise_HWC
        return mixed_NHWC.round().astype(np.uint8)

    poison = Poison(rows_P, parts(rows_P), np.full(len(rows_P), target), trigger)
    return covered(poison, rows_C, parts(rows_C), y_N[rows_C])


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
