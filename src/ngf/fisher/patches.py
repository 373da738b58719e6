"""The second moment of a convolution's patches.

u being a patch, E[u u^T] is large and repeats itself: two of its rows that lie d apart look at the
same pairs of the image's rows wherever the patch stands, but for the image's edges. So with stride
1 the products of whole rows are taken once for each distance d, 3 instead of 9 for 3x3, from images
that are unfolded along rows alone, and what the edges leave out is subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

UNFOLDED = 2**24  # numbers that are unfolded at a time, at most, but for a single image


class Met(NamedTuple):
    """Pairs of the image's rows, y and y + apart for first <= y < last."""

    apart: int
    first: int
    last: int


@torch.no_grad()
def moment(layer: nn.Conv2d, x_NCHW: Tensor) -> Tensor:
    """The mean of u u^T over images and positions, float64 [groups, I, I].

    Sums are float32 within a part of the images and float64 over the parts.
    """
    # As Conv2d itself pads: an even kernel under "same" gets one column more behind than before.
    pads: list[int] = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    by_rows, above, below = layer.stride == (1, 1), 0, 0
    if by_rows and mode == "constant":  # rows of zeros add nothing: they need not be there
        above, below, pads = pads[2], pads[3], [*pads[:2], 0, 0]
    size = layer.weight[0].numel() // (layer.kernel_size[0] if by_rows else 1)
    few = x_NCHW.split(max(1, UNFOLDED // (size * x_NCHW[0, 0].numel())))
    parts = (pad(part.float(), pads, mode) for part in few)
    if not by_rows:
        return _by_patches(layer, parts)
    height = x_NCHW.shape[2] if mode == "constant" else x_NCHW.shape[2] + pads[2] + pads[3]
    return _by_rows(layer, parts, height, above, below)


def _by_patches(layer: nn.Conv2d, parts: Iterable[Tensor]) -> Tensor:
    sums, counts = [], []
    for x_NCHW in parts:
        u_NJP = unfold(x_NCHW, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
        u_GIR = u_NJP.unflatten(1, (layer.groups, -1)).permute(1, 2, 0, 3).flatten(2)
        sums.append((u_GIR @ u_GIR.mT).double())
        counts.append(u_GIR.shape[2])
    return torch.stack(sums).sum(0) / sum(counts)


def _by_rows(
    layer: nn.Conv2d, parts: Iterable[Tensor], height: int, above: int, below: int
) -> Tensor:
    """Of images of some height that lack so many rows of zeros above and below."""
    tall, down = layer.kernel_size[0], layer.dilation[0]
    out = height + above + below - down * (tall - 1)
    windows = {
        (i, j): _window((j - i) * down, i * down - above, out, height)
        for i in range(tall)
        for j in range(i, tall)
    }
    needed = sorted({met for window in windows.values() for met in window})
    sums: dict[Met, Tensor] = {}
    shown = 0
    for x_NCHW in parts:
        u_GHRJ = _unfolded_rows(layer, x_NCHW)
        for met in needed:
            product_GJJ = _product(u_GHRJ, met)
            sums[met] = sums[met] + product_GJJ if met in sums else product_GJJ
        shown += out * u_GHRJ.shape[2]
    return _assembled(layer, windows, sums) / shown


def _window(apart: int, first: int, out: int, height: int) -> tuple[Met, Met, Met]:
    """Where rows meet that are so far apart: everywhere, less what lies before and behind.

    Args:
        first: the image's row, or one above it, that comes out first. out: how many come out.
    """
    end = max(0, height - apart)
    start = min(max(0, first), end)
    stop = min(max(start, first + out), end)
    return Met(apart, 0, end), Met(apart, 0, start), Met(apart, stop, end)


def _unfolded_rows(layer: nn.Conv2d, x_NCHW: Tensor) -> Tensor:
    """[groups, height, images and columns, J], J the group's channels and the kernel's columns."""
    wide, along = layer.kernel_size[1], layer.dilation[1]
    u_NCHPS = x_NCHW.unfold(3, along * (wide - 1) + 1, 1)[..., ::along]
    u_NGCHPS = u_NCHPS.unflatten(1, (layer.groups, -1))
    return u_NGCHPS.permute(1, 3, 0, 4, 2, 5).flatten(4).flatten(2, 3)


def _product(u_GHRJ: Tensor, met: Met) -> Tensor:
    """Sum of u(y) u(y + apart)^T, float64 [groups, J, J]."""
    upper_GRJ = u_GHRJ[:, met.first : met.last].flatten(1, 2)
    lower_GRJ = u_GHRJ[:, met.first + met.apart : met.last + met.apart].flatten(1, 2)
    return (upper_GRJ.mT @ lower_GRJ).double()


def _assembled(
    layer: nn.Conv2d,
    windows: Mapping[tuple[int, int], tuple[Met, Met, Met]],
    sums: Mapping[Met, Tensor],
) -> Tensor:
    """[groups, I, I] from the sums of pairs of the kernel's rows."""
    tall, wide = layer.kernel_size
    shape = (layer.groups, layer.in_channels // layer.groups, tall, wide)
    some = next(iter(sums.values()))
    total_GCSWCSW = some.new_empty((*shape, *shape[1:]))
    for (i, j), (every, before, behind) in windows.items():
        met_GJJ = sums[every] - sums[before] - sums[behind]
        met_GCWCW = met_GJJ.unflatten(2, (-1, wide)).unflatten(1, (-1, wide))
        total_GCSWCSW[:, :, i, :, :, j] = met_GCWCW
        if i != j:
            total_GCSWCSW[:, :, j, :, :, i] = met_GCWCW.permute(0, 3, 4, 1, 2)
    return total_GCSWCSW.flatten(4).flatten(1, 3)
