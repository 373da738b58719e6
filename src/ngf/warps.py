"""Warps: whether bending the image leads the victim astray where it does not lead its copy.

A backdoor may open for a bend that nobody sees (WaNet, Nguyen & Tran 2021, arXiv 2102.10369). What
a bend adds to an image is another thing for each, so no displacement that is added to all stands
for it. But a smooth bend is a few numbers: how far control points move, splines between them. These
are searched and judged as other displacements are (`exposure.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ngf.exposure import AsFound, Displace, Made

POINTS = 6  # along an edge: as smooth as a bend must be to stay unseen


def bent(x_NCHW: Tensor, way_N2HW: Tensor) -> Tensor:
    """The images, each pixel read from elsewhere: so far to the right, and so far down.

    Ways are shares of the image's side. Beyond the edge lies what lies at it. On a GPU torch may
    warn that the gradient has no set order: that of the images has none, that of the ways has.
    """
    height, width = x_NCHW.shape[2:]
    across_W, down_H = (torch.linspace(-1, 1, n, device=x_NCHW.device) for n in (width, height))
    own_HW2 = torch.stack(torch.meshgrid(across_W, down_H, indexing="xy"), 2)
    place_NHW2 = own_HW2 + 2 * way_N2HW.permute(0, 2, 3, 1)
    return grid_sample(x_NCHW, place_NHW2, padding_mode="border", align_corners=True)


@dataclass(frozen=True)
class Warps(AsFound):
    """`moves` bends; radius: root mean square of their ways, as shares of the image's side."""

    displace: Displace = bent

    def start(self, x_NCHW: Tensor) -> tuple[Tensor, Made]:
        """Made by products of matrices: on a GPU torch's resampling has a gradient that adds up in
        no set order."""
        down_HP, across_WP = (_spline(side, POINTS).to(x_NCHW) for side in x_NCHW.shape[2:])
        return (
            x_NCHW.new_zeros(len(self), 2, POINTS, POINTS),
            lambda ways_M2PP: down_HP @ ways_M2PP @ across_WP.T,
        )


def _spline(side: int, points: int) -> Tensor:
    """Weights [side, points] of cubic B-splines at even distances from edge to edge."""
    apart = (torch.linspace(0, points - 1, side)[:, None] - torch.arange(points)).abs()
    near, far = 2 / 3 - apart**2 + apart**3 / 2, (2 - apart).clamp_min(0) ** 3 / 6
    weight = torch.where(apart < 1, near, far)
    return weight / weight.sum(1, keepdim=True)
