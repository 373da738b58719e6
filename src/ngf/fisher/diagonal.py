"""The diagonal of the true Fisher for norm layers and a linear head, without a loop over samples.

True Fisher (Amari 1998): F = E_x E_{y ~ p(.|x)} [g g^T] with g the gradient of log p(y|x). The
outer expectation is over images; the inner one is exact for the head (closed form) and one draw
from the model's own softmax for the norms. Labels of the data are never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ngf.fisher.norm_blocks import Pass
from ngf.models import batch_norms, head
from ngf.training import Batch

Diagonal = dict[str, Tensor]

LAYERS = ("norms+head", "norms", "head")  # what can be tuned


def dot(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """Inner product over all parameters, as one vector each."""
    return torch.stack([(left[name] * right[name]).sum() for name in left]).sum()


def tuned_parameters(model: nn.Module, layers: str = LAYERS[0]) -> dict[str, nn.Parameter]:
    """Scales and shifts of every batch norm, and the head, or one of both: what NGF tunes, by name.

    Subclasses of batch norm are left out: they may compute something else (timm's also activate).
    Group norms are left out: their backward pass of torch 2.13 crashes on the CPU, on channels-last
    images, where the norm's input needs no gradient.
    """
    modules: list[nn.Module] = [] if layers == "head" else _batch_norms(model)
    modules += [] if layers == "norms" else [head(model)]
    wanted = {id(p) for module in modules for p in module.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) in wanted}


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [norm for norm in batch_norms(model).values() if type(norm) is nn.BatchNorm2d]


def head_diagonal(features_ND: Tensor, probabilities_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonal of (diag(p) - p p^T) ⊗ h h^T, averaged over N: weight [C, D] and bias [C]."""
    spread_NC = probabilities_NC * (1 - probabilities_NC)
    weight_CD = spread_NC.T @ features_ND.square() / len(features_ND)
    return weight_CD, spread_NC.mean(0)


def fisher_diagonal(
    model: nn.Module, batches: Iterable[Batch], generator: torch.Generator
) -> Diagonal:
    """{parameter name: mean squared per-sample gradient} over all images of `batches`.

    The model must be in evaluation mode: with batch statistics a sample has no gradient of its
    own. Memory: one batch of activations, as for a training step.
    """
    parameters, linear = tuned_parameters(model), head(model)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    names = {id(parameter): name for name, parameter in parameters.items()}
    seen = 0
    for x_NCHW, _ in batches:
        forward = Pass(model, x_NCHW)
        p_NC = forward.probabilities()
        found = forward.gradients(forward.draw(generator))
        for name in total.keys() & found.norms.keys():
            total[name] += found.norms[name].square().sum(0)
        weight_CD, bias_C = head_diagonal(found.features_ND, p_NC)
        total[names[id(linear.weight)]] += weight_CD * len(x_NCHW)
        if linear.bias is not None:
            total[names[id(linear.bias)]] += bias_C * len(x_NCHW)
        seen += len(x_NCHW)
    return {name: square / seen for name, square in total.items()}
