"""BNP (Zheng et al., NeurIPS 2022): prune where stored statistics differ from clean ones.

Training left mean and variance of all its images, triggered ones too, in each batch norm. A
channel's measure is KL(N(stored) || N(clean)), in closed form; channels more than u standard
deviations above their layer's mean are closed. The nearest relative of the damping in `ngf`
(`ngf.sieve`), which looks at the variance alone, asks for an excess beyond noise and scales
gradually. An attacker who recalibrates batch norm leaves nothing to see.
"""

import torch
from torch import Tensor, nn

from ngf import params
from ngf.defenses import Clean, Purified
from ngf.errors import InputError
from ngf.hooks import at_inputs
from ngf.masks import close_outliers
from ngf.models import Classifier, batch_norms
from ngf.training import pixels

AT_ONCE = 512  # images of a pass
TINY = 1e-12


def purify(model: Classifier, clean: Clean, *, u: float) -> Purified:
    """Close channels, without gradient.

    Args:
        u: standard deviations above a layer's mean.

    Notes: `pruned`, how many channels.

    Raises:
        InputError: the model has no batch norm.
    """
    params.at_least(0, u=u)
    norms = batch_norms(model.eval())
    if not norms:
        raise InputError("bnp compares statistics of batch norms, and the model has none")
    seen = input_moments(model, pixels(clean.x_NHWC))
    measured = {}
    for name, norm in norms.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        measured[name] = divergence(norm.running_mean, norm.running_var, *seen[name])
    return Purified(model, 0, 0, {"pruned": close_outliers(model, measured, u)})


def divergence(
    mean_C: Tensor, variance_C: Tensor, clean_mean_C: Tensor, clean_variance_C: Tensor
) -> Tensor:
    """KL(N(mean, variance) || N(clean mean, clean variance)), channel by channel."""
    variance_C, clean_variance_C = variance_C.clamp_min(TINY), clean_variance_C.clamp_min(TINY)
    ratio_C = variance_C / clean_variance_C
    apart_C = (mean_C - clean_mean_C).square() / clean_variance_C
    return 0.5 * (ratio_C - 1 - ratio_C.log() + apart_C)


@torch.no_grad()
def input_moments(model: nn.Module, x_NCHW: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """{batch norm's name: (mean [C], variance [C]) of its inputs}, over images and places."""
    sums: dict[str, Tensor] = {}
    places: dict[str, int] = {}

    def add(name: str, _: nn.Module, u_NCHW: Tensor) -> None:
        u = u_NCHW.double()
        both_2C = torch.stack([u.sum((0, 2, 3)), u.square().sum((0, 2, 3))])
        sums[name] = sums.get(name, torch.zeros_like(both_2C)) + both_2C
        places[name] = places.get(name, 0) + u_NCHW.numel() // u_NCHW.shape[1]

    with at_inputs(batch_norms(model), add):
        for x_BCHW in x_NCHW.split(AT_ONCE):
            model(x_BCHW)
    found = {}
    for name, both_2C in sums.items():
        mean_C, square_C = both_2C / places[name]
        found[name] = mean_C.float(), (square_C - mean_C.square()).float()
    return found
