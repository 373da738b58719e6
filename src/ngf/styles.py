"""Styles: whether giving all images another look leads the victim astray where it does not lead
its copy.

A backdoor may open for a style that every image takes on in its own way: tones, contrast, softness,
contours (DFST, Cheng et al. 2021, arXiv 2012.11212, here `fba`; the filters of photographs that
TrojAI's models were poisoned with). No displacement that is added to all images stands for it, and
no bend. But much of it is what a pixel's neighbours and colours say, and one small convolution says
that:

    x' = x + K * x        K [C, C, S, S], the same for all images

Kernels are searched and judged as other displacements are (`exposure.py`), but a few of many lead
far: the best are kept on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import conv2d, pad

from ngf.exposure import TRIED, AsFound, Displace, Made

SIDE = 5  # pixels across a kernel
MANY = 2 * TRIED  # kernels that are searched together
EACH = 4  # images of a step under each
KEPT = (MANY // 2, MANY // 4)  # after a third and two thirds of the steps
LONGER = 2  # times as many steps as elsewhere; with half the kernels or steps `fba` is missed more


def styled(x_NCHW: Tensor, kernel_NCCS: Tensor) -> Tensor:
    """The images plus what each one's kernel makes of it, in [0, 1].

    Args:
        kernel_NCCS: [N, C * C, S, S], C kernels for each colour of the result, one of each colour
            of the image; S is odd. Beyond the edge lies what lies at it.
    """
    count, channels, height, width = x_NCHW.shape
    side = kernel_NCCS.shape[-1]
    wide_NCHW = pad(x_NCHW, [side // 2] * 4, mode="replicate")
    change_1CHW = conv2d(
        wide_NCHW.reshape(1, count * channels, *wide_NCHW.shape[2:]),
        kernel_NCCS.reshape(count * channels, channels, side, side),
        groups=count,
    )
    return (x_NCHW + change_1CHW.view(count, channels, height, width)).clamp(0, 1)


@dataclass(frozen=True)
class Styles(AsFound):
    """`moves` kernels; radius: root mean square of a kernel's numbers."""

    displace: Displace = styled
    moves: int = MANY
    kept: tuple[int, ...] = KEPT

    def start(self, x_NCHW: Tensor) -> tuple[Tensor, Made]:
        colours = x_NCHW.shape[1]
        none_MCCS = x_NCHW.new_zeros(len(self), colours * colours, SIDE, SIDE)
        return none_MCCS, lambda kernel_MCCS: kernel_MCCS
