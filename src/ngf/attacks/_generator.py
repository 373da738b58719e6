"""A small network that draws on images, for attackers who learn their trigger in training.

It halves the image twice, with five convolutions in all, so that it costs little beside a narrow
classifier; the generators of the papers are far larger. Its grid is about 32 pixels wide at any
image size: a larger image is averaged over squares before, and the drawing is enlarged by the same
squares after, so that it covers what it covers on CIFAR-10. There is no norm: an image's drawing
never depends on its neighbours in the batch, and is the same in training and at test time. The
weights lie in a plain dictionary, as a `Trigger` carries them.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ngf.device import autocast

GRID = 32

Net = dict[str, Tensor]


def fresh(planes: int, channels: int, generator: torch.Generator) -> Net:
    """An untrained network with `planes` planes of output, whose weights carry a gradient.

    Args:
        channels: of the finest level; the coarser one has twice as many.
    """
    sizes = {  # name: channels out, channels in
        "down1": (channels, 3),
        "down2": (2 * channels, channels),
        "middle": (2 * channels, 2 * channels),
        "up1": (4 * channels, 2 * channels),
        "up2": (4 * planes, channels),
    }
    net: Net = {}
    for name, (outside, inside) in sizes.items():
        shape, device = (outside, inside, 3, 3), generator.device
        weight = torch.randn(shape, generator=generator, device=device)
        net[f"{name}.weight"] = (weight * (2 / (9 * inside)) ** 0.5).requires_grad_()
        net[f"{name}.bias"] = torch.zeros(outside, device=device).requires_grad_()
    return net


def draw(x_NCHW: Tensor, net: Net) -> Tensor:
    """float32 [N, planes, H, W], unbounded, for pixels in [0, 1]."""
    height, width = x_NCHW.shape[2:]
    square = max(1, min(height, width) // GRID)
    with autocast(x_NCHW.device):
        x_NCHW = functional.avg_pool2d(x_NCHW - 0.5, square, ceil_mode=True)
        fine = torch.relu(_layer(x_NCHW, net, "down1", stride=2))
        coarse = torch.relu(_layer(fine, net, "down2", stride=2))
        coarse = coarse + torch.relu(_layer(coarse, net, "middle"))
        fine = torch.relu(fine + _spread(_layer(coarse, net, "up1"), fine))
        drawn_NCHW = _spread(_layer(fine, net, "up2"), x_NCHW).float()
    if square > 1:
        drawn_NCHW = functional.interpolate(drawn_NCHW, scale_factor=float(square))
    return drawn_NCHW[..., :height, :width]


def in_8_bits(x_NCHW: Tensor) -> Tensor:
    """Clipped and rounded to the levels in which images exist; the gradient passes the rounding."""
    x_NCHW = x_NCHW.clamp(0, 1)
    return x_NCHW + ((x_NCHW.detach() * 255).round() / 255 - x_NCHW.detach())


def save(**nets: Net) -> dict[str, Tensor]:
    """Networks as one dictionary of plain tensors, for a `Trigger`."""
    return {
        f"{name}.{part}": tensor.detach().float().clone()
        for name, net in nets.items()
        for part, tensor in net.items()
    }


def load(name: str, tensors: dict[str, Tensor]) -> Net:
    """The network that `save` wrote under this name."""
    start = f"{name}."
    return {
        key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)
    }


def _layer(x_NCHW: Tensor, net: Net, name: str, stride: int = 1) -> Tensor:
    return functional.conv2d(
        x_NCHW, net[f"{name}.weight"], net[f"{name}.bias"], stride=stride, padding=1
    )


def _spread(x_NCHW: Tensor, like_NCHW: Tensor) -> Tensor:
    """Four planes become one of twice the height and width, cut to the size of the other tensor."""
    height, width = like_NCHW.shape[2:]
    return functional.pixel_shuffle(x_NCHW, 2)[..., :height, :width]
