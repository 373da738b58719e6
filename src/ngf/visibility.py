"""How visible a trigger is: PSNR, SSIM, the largest change, and a sheet to look at.

SSIM is that of Wang et al. 2004 (Image Quality Assessment: From Error Visibility to Structural
Similarity): Gaussian windows of 11 pixels and deviation 1.5 that lie inside the image, each colour
for itself, their mean. Images of fewer than 11 pixels get windows as wide as they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import conv2d

if TYPE_CHECKING:
    from PIL.Image import Image

    from ngf.attacks import Trigger
    from ngf.images import Streamed

WINDOW, DEVIATION = 11, 1.5
K1, K2 = 0.01, 0.03
FACTOR = 10  # by which the sheet shows differences
EDGE = 96  # pixels that an image of the sheet is at least wide
JUDGED = 500  # images whose change is measured


def pairs(trigger: Trigger, x_NHWC: Tensor | Streamed, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the images that count, clean and triggered; none where there is no backdoor."""
    rows_M = (trigger.wanted(y_N) >= 0).nonzero().flatten()[:JUDGED]
    clean_NHWC = x_NHWC[rows_M]
    return clean_NHWC, trigger.apply(clean_NHWC, y_N[rows_M])


def visibility(x_NHWC: Tensor, with_NHWC: Tensor) -> dict[str, float | int | None]:
    """Of uint8 images [N, H, W, 3], clean and triggered.

    Returns:
        psnr in dB, of the mean squared change of all images, None where nothing changes; ssim, the
        mean over images, in [-1, 1]; largest change of a pixel, in grey levels of 255; n.
    """
    clean_NCHW, with_NCHW = (x.permute(0, 3, 1, 2).double() for x in (x_NHWC, with_NHWC))
    change_NCHW = with_NCHW - clean_NCHW
    error = change_NCHW.square().mean().item() / 255**2
    return {
        "psnr": -10 * math.log10(error) if error else None,
        "ssim": ssim(clean_NCHW, with_NCHW).mean().item(),
        "largest": int(change_NCHW.abs().max()),
        "n": len(x_NHWC),
    }


def ssim(x_NCHW: Tensor, z_NCHW: Tensor, peak: float = 255.0) -> Tensor:
    """Structural similarity of each pair of float images [N]; `peak` is the range of a pixel."""
    size = min(WINDOW, *x_NCHW.shape[2:])
    place_S = torch.arange(size, dtype=x_NCHW.dtype, device=x_NCHW.device) - (size - 1) / 2
    weight_S = torch.exp(-place_S.square() / (2 * DEVIATION**2))
    weight_S = weight_S / weight_S.sum()

    def local(u_NCHW: Tensor) -> Tensor:
        """Means under the window, row by row, then column by column."""
        u_M1HW = u_NCHW.flatten(0, 1)[:, None]
        return conv2d(conv2d(u_M1HW, weight_S.view(1, 1, -1, 1)), weight_S.view(1, 1, 1, -1))

    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    mean_x, mean_z = local(x_NCHW), local(z_NCHW)
    variance_x = local(x_NCHW.square()) - mean_x.square()
    variance_z = local(z_NCHW.square()) - mean_z.square()
    covariance = local(x_NCHW * z_NCHW) - mean_x * mean_z
    alike = (2 * mean_x * mean_z + c1) * (2 * covariance + c2)
    found = alike / ((mean_x.square() + mean_z.square() + c1) * (variance_x + variance_z + c2))
    return found.view(len(x_NCHW), -1).mean(1)


def sheet(x_NHWC: Tensor, with_NHWC: Tensor) -> Image:
    """Three rows: images, the same triggered, and the difference around middle grey, tenfold."""
    from PIL import Image

    change_NHWC = (with_NHWC.int() - x_NHWC.int()) * FACTOR + 128
    change_NHWC = change_NHWC.clamp(0, 255).to(torch.uint8)
    rows = [torch.cat(list(row), 1) for row in (x_NHWC, with_NHWC, change_NHWC)]
    pixels = torch.cat(rows).cpu().numpy()
    scale = math.ceil(EDGE / x_NHWC.shape[2])
    size = (pixels.shape[1] * scale, pixels.shape[0] * scale)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
