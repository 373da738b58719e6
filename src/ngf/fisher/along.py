"""The true Fisher along one direction, exactly and without a matrix: one forward-mode pass."""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call, jvp


def fisher_along(model: nn.Module, x_NCHW: Tensor, direction: dict[str, Tensor]) -> Tensor:
    """v^T F v, averaged over the images, for a direction {parameter name: v}.

    With t = J v the change of the logits, F's output factor diag(p) - p p^T makes this the
    variance of t under the model's own prediction p.
    """
    at = {name: p.detach() for name, p in model.named_parameters() if name in direction}

    def logits(tuned: dict[str, Tensor]) -> Tensor:
        return functional_call(model, tuned, (x_NCHW,))

    logits_NC, change_NC = jvp(logits, (at,), (direction,))[:2]
    p_NC = logits_NC.softmax(1)
    return ((p_NC * change_NC.square()).sum(1) - (p_NC * change_NC).sum(1).square()).mean()
