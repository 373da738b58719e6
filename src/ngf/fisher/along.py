"""The true Fisher along one direction, without a matrix: by the logits on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ngf.fisher.diagonal import dot

REACH = 1e-3  # of the parameters' norm, to either side
NEVER = 1e-30


@torch.no_grad()
def fisher_along(model: nn.Module, x_NCHW: Tensor, direction: dict[str, Tensor]) -> Tensor:
    """v^T F v, averaged over the images, for a direction {parameter name: v}.

    With t = J v the change of the logits, F's output factor diag(p) - p p^T makes this the
    variance of t under the model's own prediction p. t is the central difference over REACH, whose
    error is of second order: two forward passes, for any network. (Forward-mode differentiation is
    exact, takes three times as long, and seconds to get ready.)
    """
    at = {name: p for name, p in model.named_parameters() if name in direction}
    reach = REACH * (dot(at, at) / dot(direction, direction).clamp_min(NEVER)).sqrt()

    def logits(step: Tensor) -> Tensor:
        moved = {name: p + step * direction[name] for name, p in at.items()}
        found: Tensor = functional_call(model, moved, (x_NCHW,))
        return found

    with _full_precision():
        ahead_NC, behind_NC = logits(reach), logits(-reach)
    p_NC = ((ahead_NC + behind_NC) / 2).softmax(1)
    change_NC = (ahead_NC - behind_NC) / (2 * reach)
    return ((p_NC * change_NC.square()).sum(1) - (p_NC * change_NC).sum(1).square()).mean()


@contextmanager
def _full_precision() -> Iterator[None]:
    """A GPU's convolutions round to 10 bits otherwise, more than the difference bears."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
