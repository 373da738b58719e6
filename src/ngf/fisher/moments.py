"""Second moments of what layers see: A, the input factor of the Fisher (Martens & Grosse 2015)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ngf.device import autocast
from ngf.fisher import patches
from ngf.hooks import at_inputs
from ngf.models import head

Layer = nn.Conv2d | nn.Linear
Added = Callable[[Tensor], Tensor]  # of a layer's inputs, those of all images: what was added
WIDEST = 8192  # inputs of a layer; the moments of a wider one (VGG's first linear one) are too many


@contextlib.contextmanager
def collected_moments(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A of every layer but the head, by the layer's name, of the forward pass that is made within.

    The model must be in evaluation mode; it is left as it is.
    """
    found: dict[str, Tensor] = {}

    def look(name: str, layer: Layer, u: Tensor) -> None:
        found[name] = input_moment(layer, u)

    with at_inputs(filtered_layers(model), look):
        yield found


@torch.no_grad()
def input_moments(model: nn.Module, x_NCHW: Tensor) -> dict[str, Tensor]:
    """As `collected_moments`, of one pass of these images."""
    with collected_moments(model) as found, autocast(x_NCHW.device):
        model(x_NCHW)
    return found


def displacement_moments(model: nn.Module, x_NCHW: Tensor, moved_NCHW: Tensor) -> dict[str, Tensor]:
    """D of every layer but the head: the moments of what the displacement adds to its inputs."""
    assert x_NCHW.shape == moved_NCHW.shape, "every image is moved"

    def added(u: Tensor) -> Tensor:
        before, after = u.chunk(2)
        return after - before

    return _moments_of(added, model, x_NCHW, moved_NCHW)


def joining_moments(
    model: nn.Module, one_NCHW: Tensor, two_NCHW: Tensor, upright_N: Tensor
) -> dict[str, Tensor]:
    """D of every layer but the head: the moments of what joining two halves adds to its inputs.

    That is what the layer sees of the joined image beyond the joined halves of what it sees of the
    two. Where it sees no halves: of one position beyond the mean of both, of a token beyond what it
    sees in the image that is nearer.

    Args:
        upright_N: see `join`.
    """

    def added(u: Tensor) -> Tensor:
        one, two, both = u.chunk(3)
        return both - _apart(one, two, both, upright_N)

    return _moments_of(added, model, one_NCHW, two_NCHW, join(one_NCHW, two_NCHW, upright_N))


@torch.no_grad()
def _moments_of(added: Added, model: nn.Module, *images: Tensor) -> dict[str, Tensor]:
    """The moments of what `added` makes of each layer's inputs, of one pass of all images."""
    found: dict[str, Tensor] = {}

    def look(name: str, layer: Layer, u: Tensor) -> None:
        found[name] = input_moment(layer, added(u.float()))

    with at_inputs(filtered_layers(model), look), autocast(images[0].device):
        model(torch.cat(images))
    return found


def _apart(one: Tensor, two: Tensor, both: Tensor, upright_N: Tensor) -> Tensor:
    """What a layer would see of the joined image if joining added nothing."""
    if one.ndim == 4 and min(one.shape[2:]) > 1:
        return join(one, two, upright_N)
    if one.ndim == 3:
        far_one, far_two = ((both - u).square().sum(2, keepdim=True) for u in (one, two))
        return torch.where(far_one <= far_two, one, two)
    return (one + two) / 2


def join(one_NCHW: Tensor, two_NCHW: Tensor, upright_N: Tensor) -> Tensor:
    """The left half of the first and the right one of the second or, where upright, the upper and
    the lower one."""
    height, width = one_NCHW.shape[2:]
    half_2HW = torch.zeros(2, height, width, dtype=torch.bool, device=one_NCHW.device)
    half_2HW[0, :, : width // 2] = True
    half_2HW[1, : height // 2] = True
    return torch.where(half_2HW[upright_N.long(), None], one_NCHW, two_NCHW)


def filtered_layers(model: nn.Module) -> dict[str, Layer]:
    """Convolutions and linear layers but the head and those wider than WIDEST, by name."""
    last = head(model)
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, Layer) and layer is not last and layer.weight[0].numel() <= WIDEST
    }


@torch.no_grad()
def input_moment(layer: Layer, x: Tensor) -> Tensor:
    """A: the mean of u u^T over images and positions, float64 [groups, I, I].

    u are the layer's inputs: patches of a convolution's groups, tokens of a linear layer.
    """
    # Not in bfloat16, whatever the pass around it does: its rounding exceeds small eigenvalues.
    with torch.autocast(x.device.type, enabled=False):
        if isinstance(layer, nn.Conv2d):
            return patches.moment(layer, x)
        u_RI = x.float().flatten(0, -2)
        return (u_RI.mT @ u_RI).double()[None] / len(u_RI)
