"""FST (Min et al., NeurIPS 2023, arXiv 2310.01875): tune all, away from the victim's classifier.

The classifier starts anew and its inner product with the victim's, w0, is part of the loss:
L + alpha <w, w0>, with |w| = |w0| held after each step. So features must shift.
"""

import torch
from torch import Tensor

from ngf import params
from ngf.defenses import Clean, Purified
from ngf.defenses._steps import batches_of, descend, mean_loss, sgd
from ngf.models import Classifier, head


def purify(
    model: Classifier,
    clean: Clean,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    alpha: float,
    shift: int,
    seed: int,
) -> Purified:
    """Train all parameters, norm statistics included, with a fresh classifier.

    Args:
        alpha: weight of the inner product.
    """
    params.at_least(1, epochs=epochs)
    params.at_least(0, lr=lr, momentum=momentum, weight_decay=weight_decay, alpha=alpha)
    layer = head(model)
    w0_CD = layer.weight.detach().clone()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        bound = layer.in_features**-0.5  # torch's own start of a linear layer
        fresh_CD = torch.empty(w0_CD.shape).uniform_(-bound, bound, generator=generator)
        layer.weight.copy_(fresh_CD)
        if layer.bias is not None:
            layer.bias.zero_()

    def loss(x_BCHW: Tensor, y_B: Tensor) -> Tensor:
        return mean_loss(model, x_BCHW, y_B) + alpha * (layer.weight * w0_CD).sum()

    @torch.no_grad()
    def as_long() -> None:
        layer.weight.mul_(w0_CD.norm() / layer.weight.norm())

    as_long()
    batches = batches_of(clean, batch_size=batch_size, shift=shift, seed=seed)
    steps = epochs * batches.per_epoch
    optimizer, schedule = sgd(
        model.parameters(), steps, lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    model.train()
    descend(model, batches, steps, loss, optimizer, schedule, after=as_long, what="shift features")
    tuned = sum(parameter.numel() for parameter in model.parameters())
    return Purified(model.eval(), tuned, steps)
