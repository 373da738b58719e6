"""CLP (Zheng et al., ECCV 2022, arXiv 2208.03111): prune channels with a large Lipschitz bound.

Data-free. The bound of a channel that a convolution and the batch norm after it make is the
spectral norm of its kernel, reshaped to inputs x places and scaled as the norm scales it. Channels
that lie more than u standard deviations above their layer's mean are closed.

Which convolution a norm belongs to is seen in the order of execution, on one black image. A norm
after a sum (a pre-activation block's first) takes the branch that was computed last, as the
published code does.
"""

import torch
from torch import Tensor, nn

from ngf import params
from ngf.defenses import Clean, Purified
from ngf.errors import InputError
from ngf.hooks import at_inputs
from ngf.masks import close_outliers
from ngf.models import Classifier, batch_norms


def purify(model: Classifier, clean: Clean, *, u: float) -> Purified:
    """Close channels, without gradient and without images.

    Args:
        u: standard deviations above a layer's mean.

    Notes: `pruned`, how many channels.

    Raises:
        InputError: the model has no batch norm after a convolution.
    """
    params.at_least(0, u=u)
    black_NCHW = torch.zeros_like(clean.x_NHWC[:1], dtype=torch.float32).permute(0, 3, 1, 2)
    bounds = channel_bounds(model.eval(), black_NCHW)
    if not bounds:
        raise InputError("clp needs batch norms after convolutions, and the model has none")
    return Purified(model, 0, 0, {"pruned": close_outliers(model, bounds, u)})


@torch.no_grad()
def channel_bounds(model: nn.Module, x_NCHW: Tensor) -> dict[str, Tensor]:
    """{batch norm's name: [C]}, the spectral norms of the channels' scaled kernels."""
    norms = batch_norms(model)
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    latest: list[nn.Conv2d] = []
    found: dict[str, Tensor] = {}

    def look(name: str, module: nn.Module, _: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            latest.append(module)
        elif isinstance(module, nn.BatchNorm2d) and latest:
            convolution = latest[-1]
            if convolution.out_channels == module.num_features:
                found[name] = _bounds(convolution, module)

    with at_inputs({**convolutions, **norms}, look):
        model(x_NCHW)
    return found


def _bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_var is not None
    scale_C = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale_C = scale_C * norm.weight.abs()
    kernels_CIK = convolution.weight.flatten(2).float()
    return torch.linalg.matrix_norm(kernels_CIK, ord=2) * scale_C
