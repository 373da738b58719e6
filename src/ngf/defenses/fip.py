"""FIP (Karim et al., CCS 2024, arXiv 2409.00863): fine-tune all towards small Fisher information.

L + trace_weight Tr F(theta) + anchor / 2 (theta - theta0)' diag F(theta0) (theta - theta0).

The trace is what the paper says and not what its code computes (a running sum of gradients times
noise, of mean 0). With z the logits, p the answers and e random signs, u = sqrt(p) e - p <sqrt(p),
e> has covariance diag(p) - p p'; images draw independently, so E |grad sum_i <u_i, z_i>|^2 / n, u
held, is Tr F, and with u's own dependence on theta kept its gradient is the trace's. trace_weight
is what its author advises (0.005 or less) and not the code's default.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from ngf import params
from ngf.defenses import Clean, Purified
from ngf.defenses._steps import batches_of, descend, mean_loss, sgd
from ngf.models import Classifier
from ngf.norms import statistics_held
from ngf.training import pixels

PER_SAMPLE = 2**25  # numbers that one chunk's per-sample gradients may hold


def purify(
    model: Classifier,
    clean: Clean,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    trace_weight: float,
    trace_images: int,
    anchor: float,
    shift: int,
    seed: int,
) -> Purified:
    """Train all parameters, norm statistics included.

    Args:
        trace_weight: eta_F. trace_images: of a batch, that estimate the trace.
        anchor: eta_r, weight of the Fisher-weighted distance from the victim.
    """
    params.at_least(1, epochs=epochs, trace_images=trace_images)
    params.at_least(0, lr=lr, momentum=momentum, weight_decay=weight_decay)
    params.at_least(0, trace_weight=trace_weight, anchor=anchor)
    generator = torch.Generator(clean.y_N.device).manual_seed(seed)
    model.eval()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    fisher = diagonal(model, pixels(clean.x_NHWC), generator) if anchor else {}
    parameters = [p for p in model.parameters() if p.requires_grad]

    def loss(x_BCHW: Tensor, y_B: Tensor) -> Tensor:
        total = mean_loss(model, x_BCHW, y_B)
        if trace_weight:
            with statistics_held(model):
                found = trace(model, parameters, x_BCHW[:trace_images], generator)
            total = total + trace_weight * found
        for name, parameter in model.named_parameters():
            if name in fisher:
                away = (parameter - start[name]).square()
                total = total + anchor / 2 * (fisher[name] * away).sum()
        return total

    batches = batches_of(clean, batch_size=batch_size, shift=shift, seed=seed)
    steps = epochs * batches.per_epoch
    optimizer, schedule = sgd(
        parameters, steps, lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    model.train()
    descend(model, batches, steps, loss, optimizer, schedule, what="towards small information")
    return Purified(model.eval(), sum(p.numel() for p in parameters), steps)


def trace(
    model: Classifier, parameters: Sequence[Tensor], x_NCHW: Tensor, generator: torch.Generator
) -> Tensor:
    """An unbiased estimate of Tr F of the model's own answers, a mean over images, with a gradient.

    In full precision: it is differentiated twice. With batch norm in training mode F is that of
    the batch's answers together. In evaluation mode, between steps in training mode, statistics
    that lag behind the weights let the trace and its gradient explode.
    """
    z_NC = model(x_NCHW)
    e_NC = torch.rand(z_NC.shape, generator=generator, device=z_NC.device).sub(0.5).sign()
    p_NC = z_NC.softmax(1)
    root_NC = p_NC.sqrt()
    u_NC = root_NC * e_NC - p_NC * (root_NC * e_NC).sum(1, keepdim=True)
    # As the vector of the product, u is held in this derivative, and keeps its graph for the next.
    gradients = torch.autograd.grad(
        z_NC, parameters, u_NC, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.stack([g.square().sum() for g in gradients]).sum() / len(z_NC)


def diagonal(model: Classifier, x_NCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Diagonal of the true Fisher of all parameters, labels drawn from the model's own answers."""
    names = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        p_NC = torch.cat([model(x).softmax(1) for x in x_NCHW.split(256)])
    drawn_N = torch.multinomial(p_NC, 1, generator=generator).squeeze(1)

    def loss(tuned: dict[str, Tensor], x_CHW: Tensor, y: Tensor) -> Tensor:
        logits_1C = functional_call(model, tuned, (x_CHW[None],))
        return torch.nn.functional.cross_entropy(logits_1C, y[None])

    size = sum(p.numel() for p in names.values())
    chunk = max(1, PER_SAMPLE // size)
    total = {name: torch.zeros_like(p) for name, p in names.items()}
    each = vmap(grad(loss), (None, 0, 0))
    for x_BCHW, y_B in zip(x_NCHW.split(chunk), drawn_N.split(chunk), strict=True):
        for name, g in each(names, x_BCHW, y_B).items():
            total[name] += g.square().sum(0)
    return {name: one / len(x_NCHW) for name, one in total.items()}
