"""One natural-gradient step on the weights' norm: what clean images do not use goes to zero.

The paper's anchor keeps the weights near the victim's as far as clean images can tell. Weight decay
pulls the other way. For one layer, and the input factor A of its Kronecker-factored Fisher (Martens
& Grosse 2015, arXiv 1503.05671), their sum has a closed minimum:

    min_W  tr (W - W0) A (W - W0)^T + lambda tr W W^T        W = W0 A (A + lambda I)^-1

which is the natural-gradient step -(A + lambda I)^-1 lambda W0 from the victim. A direction that
clean images fill, a >> lambda, keeps its weight; one that they leave empty loses it. There is where
a backdoor listens. The output factor is left out: weighted by it the step spares the backdoor,
whose outputs matter to the loss as much as any other's (docs/method.md).

Where it is known what shall not pass, the noise need not be white. With D the second moment of what
a displacement of the images adds to the layer's inputs, the penalty mu tr W D W^T makes it

    W = W0 A (A + lambda I + mu D)^-1
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ngf.device import autocast
from ngf.hooks import at_inputs
from ngf.models import head

Layer = nn.Conv2d | nn.Linear
CHUNK = 64  # images whose patches are unfolded at a time
UNFOLDED = 2**27  # numbers in them, at most
WIDEST = 8192  # inputs of a layer; the moments of a wider one (VGG's first linear one) are too many


@torch.no_grad()
def input_moments(model: nn.Module, x_NCHW: Tensor) -> dict[str, Tensor]:
    """A of every layer but the head, by the layer's name, in one forward pass.

    The model must be in evaluation mode; it is left as it is.
    """
    found: dict[str, Tensor] = {}

    def look(name: str, layer: Layer, u: Tensor) -> None:
        found[name] = input_moment(layer, u)

    with at_inputs(filtered_layers(model), look), autocast(x_NCHW.device):
        model(x_NCHW)
    return found


@torch.no_grad()
def displacement_moments(model: nn.Module, x_NCHW: Tensor, moved_NCHW: Tensor) -> dict[str, Tensor]:
    """D of every layer but the head: the moments of what the displacement adds to its inputs."""
    assert x_NCHW.shape == moved_NCHW.shape, "every image is moved"
    found: dict[str, Tensor] = {}

    def look(name: str, layer: Layer, u: Tensor) -> None:
        before, after = u.float().chunk(2)
        found[name] = input_moment(layer, after - before)

    with at_inputs(filtered_layers(model), look), autocast(x_NCHW.device):
        model(torch.cat([x_NCHW, moved_NCHW]))
    return found


def filtered_layers(model: nn.Module) -> dict[str, Layer]:
    """Convolutions and linear layers but the head and those wider than WIDEST, by name."""
    last = head(model)
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, Layer) and layer is not last and layer.weight[0].numel() <= WIDEST
    }


@torch.no_grad()
def decay(
    model: nn.Module,
    moments: Mapping[str, Tensor],
    strength: float,
    displaced: Mapping[str, Tensor] | None = None,
    firm: float = 0.0,
) -> None:
    """W <- W A (A + lambda I + mu D)^-1 in place, for every layer that has a moment.

    Args:
        moments: from `input_moments`, {layer's name: A [groups, I, I]}.
        strength: lambda in units of A's mean eigenvalue, above 0.
        displaced: from `displacement_moments`, D; none of it by default. firm: mu.
    """
    for name, moment_GII in moments.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Layer)
        noise_GII = 0 if displaced is None else firm * displaced[name]
        _shrink(layer, moment_GII, strength, noise_GII)


def _shrink(layer: Layer, moment_GII: Tensor, strength: float, noise_GII: Tensor | float) -> None:
    size = moment_GII.shape[-1]
    weight_GOI = layer.weight.double().reshape(len(moment_GII), -1, size)
    mean_G = moment_GII.diagonal(dim1=1, dim2=2).mean(1)
    # A layer that clean images never reach has no scale of its own, and nothing to keep.
    added_G = (strength * mean_G).clamp_min(torch.finfo(torch.float32).tiny)
    eye_II = torch.eye(size, dtype=torch.float64, device=moment_GII.device)
    blurred_GII = moment_GII + noise_GII + added_G[:, None, None] * eye_II
    small_GIO = torch.linalg.solve(blurred_GII, moment_GII @ weight_GOI.mT)
    layer.weight.copy_(small_GIO.mT.reshape(layer.weight.shape))


def input_moment(layer: Layer, x: Tensor) -> Tensor:
    """A: the mean of u u^T over images and positions, float64 [groups, I, I].

    u are the layer's inputs: patches of a convolution's groups, tokens of a linear layer.
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    size = layer.weight[0].numel()
    total_GII = torch.zeros(groups, size, size, dtype=torch.float64, device=x.device)
    count = 0
    unfolded = size * x[0, 0].numel()  # of an image, at stride 1
    # Not in bfloat16, whatever the pass around it does: its rounding exceeds small eigenvalues.
    with torch.autocast(x.device.type, enabled=False):
        for part in x.split(max(1, min(CHUNK, UNFOLDED // unfolded))):
            u_GRI = _inputs(layer, part.float(), groups)
            total_GII += (u_GRI.mT @ u_GRI).double()
            count += u_GRI.shape[1]
    return total_GII / count


def _inputs(layer: Layer, x: Tensor, groups: int) -> Tensor:
    """The layer's inputs as rows [groups, R, I]."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    # As Conv2d itself pads: an even kernel under "same" gets one column more behind than before.
    pads: list[int] = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    u_NJP = nn.functional.unfold(
        nn.functional.pad(x, pads, mode),
        layer.kernel_size,
        dilation=layer.dilation,
        stride=layer.stride,
    )
    count, _, positions = u_NJP.shape
    u_NGIP = u_NJP.view(count, groups, -1, positions)
    return u_NGIP.permute(1, 0, 3, 2).reshape(groups, count * positions, -1)
