"""The diagonal of the true Fisher for norm layers and a linear head, without a loop over samples.

True Fisher (Amari 1998): F = E_x E_{y ~ p(.|x)} [g g^T] with g the gradient of log p(y|x). The
outer expectation is over images; the inner one is exact for the head (closed form) and one draw
from the model's own softmax for the norms. Labels of the data are never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngf.device import autocast
from ngf.models import batch_norms, head
from ngf.training import Batch

Diagonal = dict[str, Tensor]


def tuned_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Scales and shifts of every batch norm, and the head: what NGF tunes, by name."""
    wanted = {id(p) for module in [*batch_norms(model), head(model)] for p in module.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) in wanted}


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
    names = {id(parameter): name for name, parameter in tuned_parameters(model).items()}
    total = {name: torch.zeros_like(p) for name, p in tuned_parameters(model).items()}
    seen = 0
    for x_NCHW, _ in batches:
        for parameter, square in _sums_of_squares(model, x_NCHW, generator):
            total[names[id(parameter)]] += square
        seen += len(x_NCHW)
    return {name: square / seen for name, square in total.items()}


def _sums_of_squares(
    model: nn.Module, x_NCHW: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """(parameter, sum over the batch of squared per-sample gradients of log p(y|x))."""
    norms, linear = batch_norms(model), head(model)
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[module], outputs[module] = args[0].detach(), output

    hooks = [module.register_forward_hook(keep) for module in [*norms, linear]]
    try:
        with autocast(x_NCHW.device):
            logits_NC = model(x_NCHW).float()
    finally:
        for hook in hooks:
            hook.remove()
    probabilities_NC = logits_NC.detach().softmax(1)
    drawn_N = torch.multinomial(probabilities_NC, 1, generator=generator).squeeze(1)
    # Summed, not averaged: each image's gradient must not depend on how many share its batch.
    loss = cross_entropy(logits_NC, drawn_N, reduction="sum")
    gradients = torch.autograd.grad(loss, [outputs[norm] for norm in norms]) if norms else ()
    for norm, gradient_NCHW in zip(norms, gradients, strict=True):
        scale_NC, shift_NC = _norm_gradients(norm, inputs[norm].float(), gradient_NCHW.float())
        yield norm.weight, scale_NC.square().sum(0)
        yield norm.bias, shift_NC.square().sum(0)
    weight_CD, bias_C = head_diagonal(inputs[linear].float(), probabilities_NC)
    yield linear.weight, weight_CD * len(x_NCHW)
    if linear.bias is not None:
        yield linear.bias, bias_C * len(x_NCHW)


def _norm_gradients(
    norm: nn.BatchNorm2d, x_NCHW: Tensor, gradient_NCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Per-sample gradients of one batch norm's scale and shift, each [N, C]."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    inverse_C11 = (norm.running_var + norm.eps).rsqrt()[:, None, None]
    normalised_NCHW = (x_NCHW - norm.running_mean[:, None, None]) * inverse_C11
    return (gradient_NCHW * normalised_NCHW).sum((2, 3)), gradient_NCHW.sum((2, 3))
