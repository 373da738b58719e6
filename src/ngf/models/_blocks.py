"""What both residual networks share: convolutions, the small-image stem and the four groups."""

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import conv2d

from ngf import params
from ngf.errors import InputError

# Blocks in each of the four groups (He et al. 2016, table 1).
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
MakeBlock = Callable[[int, int, int], nn.Module]
MakeNorm = Callable[[int], nn.Module]
GROUPS = 8
BROAD = 16  # channels that oneDNN takes together, at the most


def norms(kind: str) -> MakeNorm:
    """Makes a norm for a count of channels: "batch", or "group" (Wu & He 2018, 8 groups)."""
    kinds: dict[str, MakeNorm] = {
        "batch": nn.BatchNorm2d,
        "group": lambda channels: nn.GroupNorm(math.gcd(GROUPS, channels), channels),
    }
    if kind not in kinds:
        raise InputError(f"unknown norm '{kind}': there is {', '.join(kinds)}")
    return kinds[kind]


def conv3x3(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)


def projection(inside: int, outside: int, stride: int) -> nn.Conv2d:
    """1x1, where a shortcut changes the shape."""
    kind = nn.Conv2d if inside >= BROAD else _Thinned
    return kind(inside, outside, 1, stride, bias=False)


class _Thinned(nn.Conv2d):
    """1x1 at a stride, as the pixels that it sees and no stride.

    The same sums. With few channels, last in memory, oneDNN's gradient of the strided weights
    writes past its buffer (uxlfoundation/oneDNN issue 6035): wrong numbers or a crash.
    """

    def forward(self, x: Tensor) -> Tensor:
        down, right = self.stride
        return conv2d(x[:, :, ::down, ::right], self.weight)


def small_image_stem(width: int, stride: int) -> nn.Conv2d:
    """3x3 at stride 1, the usual CIFAR stem; windows twice as wide as a longer stride.

    At stride 2 the network has a quarter of the work, at 4 a sixteenth.
    """
    params.at_least(1, width=width)
    if stride == 1:
        return conv3x3(3, width)
    if stride in (2, 4):
        return nn.Conv2d(3, width, 2 * stride, stride, padding=stride // 2, bias=False)
    raise InputError(f"stem_stride must be 1, 2 or 4, got {stride}")


def groups(depth: int, width: int, block: MakeBlock) -> list[nn.Module]:
    """All residual blocks: width, 2, 4 and 8 times the width; stride 2 between the groups."""
    if depth not in DEPTHS:
        raise InputError(f"unknown depth {depth}: there is {', '.join(map(str, DEPTHS))}")
    blocks: list[nn.Module] = []
    inside = width
    for group, count in enumerate(DEPTHS[depth]):
        outside = width * 2**group
        for index in range(count):
            stride = 2 if group > 0 and index == 0 else 1
            blocks.append(block(inside, outside, stride))
            inside = outside
    return blocks
