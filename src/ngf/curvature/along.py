"""Second derivatives of every image's loss along one direction of the parameters, forward mode.

With z the logits along θ + t v and p their softmax, cross-entropy's chain rule reads

    v'F v = Var_p(z')                       the Fisher's, which is the generalised Gauss-Newton's
    v'H v = v'F v + (p - onehot(y))' z''    the Hessian's (Martens 2020, JMLR 21, section 8)

so one pass gives both, of each image alone, for the price of some four forward passes and without
keeping any of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.functional import cross_entropy, one_hot

from ngf.curvature.parameters import trained


@torch.no_grad()
def curvatures(
    model: nn.Module, x_NCHW: Tensor, y_N: Tensor, v_D: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(v'H_i v, v'F_i v, loss_i), each [N], of cross-entropy at images in [0, 1].

    v_D: over the parameters that are trained, in their order.
    """
    named = trained(model)
    parts = v_D.split([p.numel() for p in named.values()])
    v = {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}

    def logits(parameters: dict[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(model, parameters, (x_NCHW,))
        return found

    def slope(parameters: dict[str, Tensor]) -> Any:
        return jvp(logits, (parameters,), (v,))

    found: Any = jvp(slope, (named,), (v,))  # torch's stubs expect three values
    (z_NC, first_NC), (_, second_NC) = found
    p_NC = z_NC.softmax(1)
    mean_N1 = (p_NC * first_NC).sum(1, keepdim=True)
    fisher_N = (p_NC * (first_NC - mean_N1) ** 2).sum(1)
    residual_NC = p_NC - one_hot(y_N, z_NC.shape[1])
    return (
        fisher_N + (residual_NC * second_NC).sum(1),
        fisher_N,
        cross_entropy(z_NC, y_N, reduction="none"),
    )
