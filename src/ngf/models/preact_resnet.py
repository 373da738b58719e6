"""He et al. 2016, arXiv 1603.05027: residual network with the norms before the convolutions.

Unlike the CIFAR variant that BackdoorBench trains, the last features pass a final norm and ReLU
before pooling, as in the paper.
"""

from functools import partial

import torch
from torch import Tensor, nn

from ngf.models._blocks import MakeNorm, conv3x3, groups, norms, projection, small_image_stem


class PreActBlock(nn.Module):
    """norm, ReLU, convolution, twice; the shortcut is projected where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int, norm: MakeNorm) -> None:
        super().__init__()
        self.norm1 = norm(inside)
        self.conv1 = conv3x3(inside, outside, stride)
        self.norm2 = norm(outside)
        self.conv2 = conv3x3(outside, outside)
        changes = stride != 1 or inside != outside
        self.shortcut = projection(inside, outside, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(h)
        h = self.conv1(h)
        return kept + self.conv2(torch.relu(self.norm2(h)))


def build(
    n_classes: int, *, depth: int, width: int, stem_stride: int, norm: str = "batch"
) -> nn.Module:
    """PreActResNet of `depth` 18 or 34; `width` channels in the first group (64 in the paper)."""
    make_norm = norms(norm)
    features = 8 * width
    return nn.Sequential(
        small_image_stem(width, stem_stride),
        *groups(depth, width, partial(PreActBlock, norm=make_norm)),
        make_norm(features),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(features, n_classes),
    )
