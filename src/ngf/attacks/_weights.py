"""Small networks as named weights, so that a trigger's tensors are all that it takes to run one.

They are for attackers who train a network of their own before they poison, and draw on a grid of
about 32 pixels: a larger image is reduced to 1/k of its size (k = size // 32) and the drawing is
enlarged, so that the cost is that of a small image and the drawing as coarse, seen from the same
distance. They run in full precision and look at nobody but the image itself: a row of the training
set and a test image get the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ngf.images import Images, on_device
from ngf.progress import track
from ngf.training import Batches

Weights = dict[str, Tensor]

GRID = 32
PASSES = 50  # over few images no more steps are made than this many passes


def drawn(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> Weights:
    """He-initialised weights and, under `<name>.bias`, zero biases, ready to be trained."""
    weights: Weights = {}
    for name, shape in shapes.items():
        spread = math.sqrt(2 / math.prod(shape[1:]))
        normal = torch.randn(shape, generator=generator, device=generator.device)
        weights[name] = (spread * normal).requires_grad_()
        weights[f"{name}.bias"] = torch.zeros(shape[0], device=generator.device).requires_grad_()
    return weights


def kept(weights: Weights) -> Weights:
    """The weights as a trigger holds them."""
    return {name: tensor.detach().cpu() for name, tensor in weights.items()}


def conv(x_NCHW: Tensor, weights: Weights, name: str, *, stride: int = 1) -> Tensor:
    """A 3x3 convolution that keeps the size, or halves it, rounded up."""
    return functional.conv2d(x_NCHW, weights[name], weights[f"{name}.bias"], stride, padding=1)


def linear(x_NI: Tensor, weights: Weights, name: str) -> Tensor:
    return functional.linear(x_NI, weights[name], weights[f"{name}.bias"])


def spread(x_NCHW: Tensor, like_NCHW: Tensor) -> Tensor:
    """Four channels as squares of four pixels, cut to the size of the other images."""
    return functional.pixel_shuffle(x_NCHW, 2)[:, :, : like_NCHW.shape[2], : like_NCHW.shape[3]]


def grid(height: int, width: int) -> tuple[int, int]:
    """The size at which the networks see an image."""
    reduced = max(1, min(height, width) // GRID)
    return math.ceil(height / reduced), math.ceil(width / reduced)


def sized(x_NCHW: Tensor, size_HW: Sequence[int]) -> Tensor:
    """The images at another size; untouched where it is theirs."""
    if list(x_NCHW.shape[2:]) == list(size_HW):
        return x_NCHW
    return functional.interpolate(x_NCHW, size=list(size_HW), mode="bilinear", antialias=True)


def shown(
    x_NHWC: Images, *, steps: int, size: int, generator: torch.Generator, what: str
) -> Iterator[Tensor]:
    """A batch of pixels [B, 3, H, W] for every step, on the generator's device."""
    there_NHWC = on_device(x_NHWC, generator.device)
    nothing_N = torch.zeros(len(x_NHWC), dtype=torch.int64, device=generator.device)
    seed = generator.initial_seed()
    batches = Batches(there_NHWC, nothing_N, size=size, shift=0, flip=False, seed=seed)
    steps = min(steps, PASSES * batches.per_epoch)
    for x_BCHW, _ in track(batches.take(steps), what, steps):
        yield x_BCHW
