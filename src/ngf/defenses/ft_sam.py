"""FT-SAM (Zhu et al., ICCV 2023, arXiv 2304.11823): fine-tuning by sharpness-aware minimisation.

Each step takes the gradient not at the weights but where the loss is highest nearby, with
"nearby" measured relative to each weight (ASAM, Kwon et al. 2021, arXiv 2102.11600). Large
weights, which hold the backdoor's neurons in Zhu et al.'s reading, are thus moved the most.

Numbers and details are those of BackdoorBench's `defense/ft-sam.py`: adaptive, rho 2 throughout,
label smoothing 0.1, batch-norm statistics moved by the first pass alone. Two things differ. Its
cosine schedule has a period of 100 epochs but is stepped once a batch, so that its learning rate
swings and ends high; here one cosine spans all steps. It gets back to the weights by subtracting
the perturbation, which rounds; here they are kept.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngf import params, trail
from ngf.defenses import Clean, Purified
from ngf.device import autocast
from ngf.models import Classifier, head
from ngf.norms import statistics_held
from ngf.progress import track
from ngf.training import Batches

EPSILON = 1e-12  # added to the gradient's norm, as in BackdoorBench


def purify(
    model: Classifier,
    clean: Clean,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    rho: float,
    label_smoothing: float,
    shift: int,
    seed: int,
) -> Purified:
    """Train all parameters, norm statistics included, each step with two gradients.

    Args:
        rho: length of the perturbation, in weights' relative units; 0 is plain fine-tuning.
        label_smoothing: probability that leaves the label for the other classes, in
            [0, 1 - 1 / classes].
    """
    n_classes = head(model).out_features
    params.at_least(1, epochs=epochs)
    params.at_least(0, lr=lr, momentum=momentum, weight_decay=weight_decay, rho=rho)
    params.within("label_smoothing", label_smoothing, 0, 1 - 1 / n_classes)
    batches = Batches(
        clean.x_NHWC, clean.y_N, size=batch_size, shift=shift, flip=clean.flip, seed=seed
    )
    steps = epochs * batches.per_epoch
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    shown = track(batches.take(steps), "sharpness-aware fine-tune", steps)
    for step, (x_BCHW, y_B) in enumerate(shown, 1):
        backward(model, x_BCHW, y_B, label_smoothing)
        with perturbed(parameters, rho), statistics_held(model):
            backward(model, x_BCHW, y_B, label_smoothing)
        optimizer.step()
        schedule.step()
        trail.mark(model, step, steps)
    tuned = sum(parameter.numel() for parameter in parameters)
    return Purified(model.eval(), tuned, steps)


def backward(model: nn.Module, x_BCHW: Tensor, y_B: Tensor, label_smoothing: float) -> None:
    """Replace the parameters' gradients by those of the batch's smoothed cross-entropy."""
    with autocast(x_BCHW.device):
        logits_BC = model(x_BCHW)
    classes = logits_BC.shape[1]
    # BackdoorBench spreads the smoothing over the other classes, torch over all of them.
    spread = label_smoothing * classes / max(classes - 1, 1)
    model.zero_grad(set_to_none=True)
    cross_entropy(logits_BC.float(), y_B, label_smoothing=spread).backward()


@contextlib.contextmanager
def perturbed(parameters: Iterable[nn.Parameter], rho: float) -> Iterator[None]:
    """Inside, each weight w with gradient g stands at w + rho w² g / ‖|w| g‖; afterwards at w.

    The norm is over all parameters at once, and the gradients are those on entry.
    """
    moved = [(p, p.grad, p.detach().clone()) for p in parameters if p.grad is not None]
    with torch.no_grad():
        norm = torch.stack([(w * gradient).norm() for _, gradient, w in moved]).norm()
        for parameter, gradient, w in moved:
            parameter.add_(rho / (norm + EPSILON) * w.square() * gradient)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, _, w in moved:
                parameter.copy_(w)
