"""Per-sample gradients of norm layers and head, and each norm layer's exact block of the Fisher.

A norm's output is scale * z + shift with z the normalised input, so one image's gradient is the sum
of (output gradient * z) and of (output gradient) over the places that share a scale. One backward
pass to the outputs of all norms gives it for every image of a batch, without a loop over images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.functional import cross_entropy, group_norm, layer_norm

from ngf.device import autocast
from ngf.errors import InputError
from ngf.models import Norm, head, norm_layers
from ngf.training import Batch


@dataclass(frozen=True)
class SampleGradients:
    """Gradients of each image's own cross-entropy.

    Args:
        norms: {parameter name: [N, *shape of the parameter]}, scales and shifts.
        residual_NC, features_ND: the head's gradient is their outer product, its bias's the
            residual p - onehot(label) alone.
    """

    norms: dict[str, Tensor]
    residual_NC: Tensor
    features_ND: Tensor


def sample_gradients(model: nn.Module, x_NCHW: Tensor, labels_N: Tensor) -> SampleGradients:
    """Gradients of all norm layers and of the head for given labels.

    Parameters may be frozen: it is the images that ask for gradients here, and nothing is left in
    any `.grad`. Layers that are used more than once add up; those not used have gradient 0.

    Raises:
        InputError: the model is in training mode, where images share statistics.
    """
    record = Pass(model, x_NCHW)
    return record.gradients(labels_N)


def blocks(
    model: nn.Module, batches: Iterable[Batch], generator: torch.Generator | None
) -> dict[str, Tensor]:
    """{norm layer's name: mean of g g^T over all images}, g = (scale, shift): [2C, 2C].

    Args:
        generator: draws one label an image from the model's own softmax, which estimates the true
            Fisher; without it the batches' labels are used (empirical Fisher).
    """
    total: dict[str, Tensor] = {}
    seen = 0
    for x_NCHW, y_N in batches:
        record = Pass(model, x_NCHW)
        gradients = record.gradients(y_N if generator is None else record.draw(generator)).norms
        for name, parameters in record.parameters.items():
            flat_NP = torch.cat([gradients[parameter].flatten(1) for parameter in parameters], 1)
            square_PP = flat_NP.T @ flat_NP
            total[name] = total[name] + square_PP if name in total else square_PP
        seen += len(x_NCHW)
    return {name: square_PP / seen for name, square_PP in total.items()}


@dataclass(frozen=True)
class _Call:
    """One use of a norm in a forward pass."""

    norm: Norm
    normalised: Tensor
    output: GradientEdge  # outlives operations in place on the output, such as ReLU


class Pass:
    """One forward pass that remembers every norm's normalised input and the head's features."""

    def __init__(self, model: nn.Module, x_NCHW: Tensor) -> None:
        _check_evaluation(model)
        self._norms, self._calls = norm_layers(model), list[_Call]()
        named = {module: name for name, module in model.named_modules()}
        self.parameters = {  # {layer's name: its parameters' names}, scale before shift
            named[norm]: [f"{named[norm]}.{name}" for name, _ in norm.named_parameters()]
            for norm in self._norms
        }
        self._names = {norm: named[norm] for norm in self._norms}
        hooks = [norm.register_forward_hook(self._keep_norm) for norm in self._norms]
        hooks.append(head(model).register_forward_hook(self._keep_head))
        try:
            with torch.enable_grad(), autocast(x_NCHW.device):
                self.logits_NC = model(x_NCHW.detach().requires_grad_())
        finally:
            for hook in hooks:
                hook.remove()

    def _keep_norm(self, norm: Norm, args: tuple[Tensor, ...], output: Tensor) -> None:
        z = _normalised(norm, args[0].detach())
        self._calls.append(_Call(norm, z, get_gradient_edge(output)))

    def _keep_head(self, linear: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        if args[0].ndim != 2:
            raise InputError(
                f"the head must map features [N, D] to logits, got {list(args[0].shape)}"
            )
        self._features_ND = _full(args[0].detach())
        self._head_output = get_gradient_edge(output)

    def probabilities(self) -> Tensor:
        """The model's own softmax [N, C]."""
        return _full(self.logits_NC.detach()).softmax(1)

    def draw(self, generator: torch.Generator) -> Tensor:
        """One label an image from the model's own softmax: [N]."""
        return torch.multinomial(self.probabilities(), 1, generator=generator).squeeze(1)

    def gradients(self, labels_N: Tensor) -> SampleGradients:
        # Summed, not averaged: an image's gradient must not depend on how many share its batch.
        with torch.enable_grad():
            loss = cross_entropy(_full(self.logits_NC), labels_N, reduction="sum")
        edges = [self._head_output, *(call.output for call in self._calls)]
        residual_NC, *outputs = torch.autograd.grad(loss, edges, allow_unused=True)
        norms = {
            f"{self._names[norm]}.{name}": parameter.new_zeros(len(labels_N), *parameter.shape)
            for norm in self._norms
            for name, parameter in norm.named_parameters()
        }
        for call, gradient in zip(self._calls, outputs, strict=True):
            if gradient is not None:
                self._add(norms, call, _full(gradient))
        return SampleGradients(norms, _full(residual_NC), self._features_ND)

    def _add(self, norms: dict[str, Tensor], call: _Call, gradient: Tensor) -> None:
        name = self._names[call.norm]
        norms[f"{name}.weight"] += _over_places(call.norm, gradient * call.normalised)
        if call.norm.bias is not None:
            norms[f"{name}.bias"] += _over_places(call.norm, gradient)


def _check_evaluation(model: nn.Module) -> None:
    for name, module in model.named_modules():
        batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch and (module.training or not module.track_running_stats):
            raise InputError(
                f"batch norm '{name}' uses the batch's statistics, so no image has a gradient of "
                "its own; call model.eval() and keep running statistics"
            )


def _full(tensor: Tensor) -> Tensor:
    """In float32 at least: sums over places lose too much in bfloat16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _normalised(norm: Norm, x: Tensor) -> Tensor:
    """A norm's output for scale 1 and shift 0, of the shape of its input."""
    x = _full(x)
    if isinstance(norm, nn.GroupNorm):
        return group_norm(x, norm.num_groups, eps=norm.eps)
    if isinstance(norm, nn.LayerNorm):
        return layer_norm(x, norm.normalized_shape, eps=norm.eps)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    inverse_C11 = (norm.running_var + norm.eps).rsqrt()[:, None, None]
    return (x - norm.running_mean[:, None, None]) * inverse_C11


def _over_places(norm: Norm, product: Tensor) -> Tensor:
    """[N, ...] summed over all that shares a parameter: [N, *shape of the parameter]."""
    if isinstance(norm, nn.LayerNorm):  # parameters along the last axes
        own = len(norm.normalized_shape)
        return product.flatten(1, -own - 1).sum(1) if product.ndim > own + 1 else product
    return product.flatten(2).sum(2) if product.ndim > 2 else product  # along axis 1
