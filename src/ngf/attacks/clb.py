"""CLB (Turner et al. 2019, arXiv 1912.02771): label-consistent poison, made hard to classify.

Images of the target class are perturbed until a clean model no longer sees their class in them, and
small checkerboards are laid over their four corners: what is left to learn from are the corners. No
label is changed, and at test time only the corners are laid over images of the other classes.

What differs from the paper: the perturbation is made against a clean model and not against one that
was trained adversarially; every corner shows the same full checkerboard, white at the very corner.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ngf import params
from ngf.attacks import Poison, Trigger, all_to_one, checkerboard, class_rows, span
from ngf.attacks._surrogate import clean_model
from ngf.device import autocast
from ngf.images import Images
from ngf.models import Classifier
from ngf.training import pixels

BATCH = 256
OVERSHOOT = 2.5  # the steps together reach so many times eps, as Madry et al. 2018 have it


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    eps: int,
    steps: int,
    size: int,
    amplitude: float,
    surrogate_epochs: int,
    seed: int,
) -> Poison:
    """Harden and mark the share `poison_rate` of the target class's images.

    Args:
        eps: grey levels of 255 by which the perturbation may move a pixel. steps: of its making.
        size: pixels along an edge of each corner's checkerboard, and its cells, in a 32x32 image;
            it grows with larger ones, see `ngf.attacks.span`.
        amplitude: what is added to its white cells and taken from its black ones, in (0, 1] of the
            pixels' range; at 1 the corners are opaque.
        surrogate_epochs: for which the attacker trains his clean model.
    """
    height, width = x_NHWC.shape[1:3]
    params.within("eps", eps, 1, 255)
    side = span(size, x_NHWC)
    params.within("size", side, 1, min(height, width) // 2)
    params.within("amplitude", amplitude, 1 / 255, 1)
    params.at_least(1, steps=steps, surrogate_epochs=surrogate_epochs)
    corners_HW = amplitude * _corners(size, side, height, width)
    trigger = Trigger("clb", all_to_one(target, n_classes), {"corners": corners_HW})
    rows_P = class_rows(y_N, "clb", target=target, rate=poison_rate, seed=seed)
    y_P = torch.from_numpy(np.asarray(y_N, np.int64)[rows_P])
    model = clean_model(x_NHWC, y_N, n_classes, epochs=surrogate_epochs, seed=seed)
    x_PHWC = hardened(model, torch.from_numpy(x_NHWC[rows_P]), y_P, eps=eps, steps=steps, seed=seed)
    return Poison(rows_P, trigger.apply(x_PHWC, y_P).numpy(), y_P.numpy(), trigger)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """x + corners, the same in every colour."""
    return x_NCHW + tensors["corners"]


def _corners(cells: int, side: int, height: int, width: int) -> Tensor:
    """[H, W]: +1 in white cells, -1 in black ones, 0 elsewhere; its own mirror image, both ways."""
    board_SS = 2.0 * checkerboard(cells, side) - 1
    corners_HW = torch.zeros(height, width)
    corners_HW[:side, :side] = board_SS
    corners_HW[:side, -side:] = board_SS.flip(1)
    corners_HW[-side:] = corners_HW[:side].flip(0)
    return corners_HW


def hardened(
    model: Classifier, x_PHWC: Tensor, y_P: Tensor, *, eps: int, steps: int, seed: int
) -> Tensor:
    """uint8 images no more than `eps` away, where the model's loss is high.

    Projected gradient ascent from a random start (Madry et al. 2018, arXiv 1706.06083).
    """
    where = model.mean.device
    generator = torch.Generator(where).manual_seed(seed)
    done_PHWC = torch.empty_like(x_PHWC)
    reach = eps / 255
    for start in range(0, len(x_PHWC), BATCH):
        part = slice(start, start + BATCH)
        x_BCHW, y_B = pixels(x_PHWC[part].to(where)), y_P[part].to(where)
        low_BCHW, high_BCHW = (x_BCHW - reach).clamp(min=0), (x_BCHW + reach).clamp(max=1)
        noise_BCHW = torch.rand(x_BCHW.shape, generator=generator, device=where)
        hard_BCHW = (x_BCHW + reach * (2 * noise_BCHW - 1)).clamp(low_BCHW, high_BCHW)
        for _ in range(steps):
            hard_BCHW.requires_grad_(True)
            with autocast(where):
                logits_BC = model(hard_BCHW)
            loss = cross_entropy(logits_BC.float(), y_B, reduction="sum")
            (slope_BCHW,) = torch.autograd.grad(loss, hard_BCHW)
            moved_BCHW = hard_BCHW.detach() + OVERSHOOT * reach / steps * slope_BCHW.sign()
            hard_BCHW = moved_BCHW.clamp(low_BCHW, high_BCHW)
        done_PHWC[part] = (hard_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
    return done_PHWC
