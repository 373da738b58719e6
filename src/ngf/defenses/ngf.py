"""NGF (Karim et al. 2023, arXiv 2306.17441): natural gradient on few parameters, held by the Fisher.

The paper tunes the classifier alone. That does not purify (docs/method.md), so this defense
departs from it: it first damps channels whose stored batch-norm variance the clean split cannot
explain, recalibrates batch norm, and then tunes norm scales, norm shifts and the classifier by

    theta <- theta - lr (F + eta F0 + damping)^-1 (g + eta F0 (theta - theta0))

with the diagonal true Fisher F. The anchor's curvature eta F0 stands inside the inverse; left out,
the step diverges. theta0 and F0 are taken once, after recalibration. Norm statistics stay fixed
while tuning and are recalibrated once more at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngf import norms
from ngf.defenses import Clean, Purified
from ngf.device import autocast
from ngf.fisher.along import fisher_along
from ngf.fisher.diagonal import Diagonal, fisher_diagonal, tuned_parameters
from ngf.models import Classifier, batch_norms
from ngf.progress import track
from ngf.training import Batch, Batches


def purify(
    model: Classifier,
    clean: Clean,
    *,
    suppression: float,
    views: int,
    steps: int,
    batch_size: int,
    lr: float,
    eta: float,
    damping: float,
    fisher_every: int,
    shift: int,
    seed: int,
) -> Purified:
    """Purify in four moves: damp, recalibrate, tune, recalibrate.

    Args:
        suppression: k in scale *= (1 + excess)^(-k/2); 0 leaves scales alone.
        views: augmented passes over the clean split for statistics and Fisher.
        steps, batch_size, lr: natural-gradient steps on parameters in units of the Fisher norm.
        eta: weight of the Fisher anchor. damping: in units of the mean Fisher of all parameters.
        fisher_every: steps between two estimates of F.
    """
    batches = Batches(
        clean.x_NHWC, clean.y_N, size=batch_size, shift=shift, flip=clean.flip, seed=seed
    )
    device = clean.y_N.device
    pass_over = views * batches.per_epoch
    suspicion = 0.0
    if batch_norms(model):
        variances = norms.input_variances(model, batches.take(pass_over), device)
        suspicion = norms.damp(model, variances, suppression)
        norms.recalibrate(model, batches.take(pass_over), device)
    tuned = _tune(model, batches, pass_over, steps, lr, eta, damping, fisher_every, seed)
    if batch_norms(model):
        norms.recalibrate(model, batches.take(pass_over), device)
    return Purified(model, tuned, steps, {"suspicion": suspicion})


def _tune(
    model: Classifier,
    batches: Batches,
    pass_over: int,
    steps: int,
    lr: float,
    eta: float,
    damping: float,
    fisher_every: int,
    seed: int,
) -> int:
    """Natural-gradient steps, in place. Returns how many parameters they moved."""
    model.eval()
    parameters = tuned_parameters(model)
    names = list(parameters)
    generator = torch.Generator(batches.y_N.device).manual_seed(seed)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    anchor = fisher_diagonal(model, batches.take(pass_over), generator)
    fisher = anchor
    floor = damping * _mean(anchor)
    for step, batch in enumerate(track(batches.take(steps), "purify", steps)):
        if step and step % fisher_every == 0:
            fisher = fisher_diagonal(model, batches.take(2), generator)
        gradients = dict(zip(names, _gradients(model, parameters, batch), strict=True))
        with torch.no_grad():
            pulled = {
                name: gradients[name] + eta * anchor[name] * (parameters[name] - start[name])
                for name in names
            }
            direction = {
                name: pulled[name] / (fisher[name] + eta * anchor[name] + floor) for name in names
            }
            own = {n: direction[n].square() * (eta * anchor[n] + floor) for n in names}
            slope = sum((pulled[n] * direction[n]).sum() for n in names)
            curvature = fisher_along(model, batch[0], direction) + sum(o.sum() for o in own.values())
            length = lr * slope / curvature
            for name, parameter in parameters.items():
                parameter -= length * direction[name]
    return sum(parameter.numel() for parameter in parameters.values())


def _gradients(
    model: nn.Module, parameters: dict[str, nn.Parameter], batch: Batch
) -> tuple[Tensor, ...]:
    """Gradient of the batch's mean cross-entropy."""
    x_NCHW, y_N = batch
    with autocast(x_NCHW.device):
        logits_NC = model(x_NCHW)
    return torch.autograd.grad(cross_entropy(logits_NC.float(), y_N), list(parameters.values()))


def _mean(fisher: Diagonal) -> Tensor:
    """The average diagonal entry over all parameters."""
    return torch.cat([square.flatten() for square in fisher.values()]).mean()
