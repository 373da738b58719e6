"""He et al. 2016, arXiv 1512.03385: residual network, with a stem for small images."""

from functools import partial

import torch
from torch import Tensor, nn

from ngf.models._blocks import MakeNorm, conv3x3, groups, norms, projection, small_image_stem


class BasicBlock(nn.Module):
    """convolution, norm, ReLU, convolution, norm, sum, ReLU."""

    def __init__(self, inside: int, outside: int, stride: int, norm: MakeNorm) -> None:
        super().__init__()
        self.conv1 = conv3x3(inside, outside, stride)
        self.norm1 = norm(outside)
        self.conv2 = conv3x3(outside, outside)
        self.norm2 = norm(outside)
        changes = stride != 1 or inside != outside
        self.shortcut = (
            nn.Sequential(projection(inside, outside, stride), norm(outside))
            if changes
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(h + self.shortcut(x))


def build(
    n_classes: int, *, depth: int, width: int, stem_stride: int, norm: str = "batch"
) -> nn.Module:
    """ResNet of `depth` 18 or 34; `width` channels in the first group (64 in the paper)."""
    make_norm = norms(norm)
    return nn.Sequential(
        small_image_stem(width, stem_stride),
        make_norm(width),
        nn.ReLU(),
        *groups(depth, width, partial(BasicBlock, norm=make_norm)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, n_classes),
    )
