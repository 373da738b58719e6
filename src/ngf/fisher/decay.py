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
a displacement of the images, or their joining, adds to the layer's inputs, the penalty
mu tr W D W^T makes it

    W = W0 A (A + lambda I + mu D)^-1
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ngf.fisher.moments import Layer


@torch.no_grad()
def decay(
    model: nn.Module,
    moments: Mapping[str, Tensor],
    strength: float,
    added: Mapping[str, Tensor] | None = None,
    firm: float = 0.0,
) -> None:
    """W <- W A (A + lambda I + mu D)^-1 in place, for every layer that has a moment.

    Args:
        moments: from `input_moments`, {layer's name: A [groups, I, I]}.
        strength: lambda in units of A's mean eigenvalue, above 0.
        added: from `displacement_moments` or `joining_moments`, D; none of it by default. firm: mu.
    """
    for name, moment_GII in moments.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Layer)
        _shrink(layer, moment_GII, strength, None if added is None else firm * added[name])


def _shrink(layer: Layer, a_GII: Tensor, strength: float, noise_GII: Tensor | None) -> None:
    weight_GIO = layer.weight.double().reshape(len(a_GII), -1, a_GII.shape[-1]).mT
    blurred_GII = a_GII.clone() if noise_GII is None else a_GII + noise_GII
    mean_G = a_GII.diagonal(dim1=1, dim2=2).mean(1)
    # A layer that clean images never reach has no scale of its own, and nothing to keep; what a
    # displacement adds to it may have no inverse either.
    least_G = 1e-10 * blurred_GII.diagonal(dim1=1, dim2=2).mean(1)
    added_G = (strength * mean_G).maximum(least_G).clamp_min(torch.finfo(torch.float32).tiny)
    blurred_GII.diagonal(dim1=1, dim2=2).add_(added_G[:, None])
    kept_GIO = torch.linalg.solve(blurred_GII, a_GII @ weight_GIO)
    layer.weight.copy_(kept_GIO.mT.reshape(layer.weight.shape))
