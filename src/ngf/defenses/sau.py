"""SAU (Wei et al., NeurIPS 2023, arXiv 2307.10562): unlearn adversarial examples that both share.

Inside, a perturbation of each image (L-infinity) that fools victim and model alike:
max of  b1 (L(model) + L(victim)) / 2 - b2 JS(model, victim).
Outside, a step on  l1 L(clean) + l2 L(perturbed) + l3 L_shared, with L_shared = -log(1 - p(y')) for
images whose victim's answer y' is not their class: the model shall not repeat it. Numbers are
BackdoorBench's.
"""

import copy

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ngf import params
from ngf.defenses import Clean, Purified
from ngf.defenses._steps import answers, batches_of, descend
from ngf.models import Classifier

SURE = 1e-6  # least 1 - p whose logarithm is taken


def purify(
    model: Classifier,
    clean: Clean,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    radius: float,
    inner_rate: float,
    inner_steps: int,
    adversarial: float,
    shared: float,
    clean_weight: float,
    perturbed_weight: float,
    shared_weight: float,
    shift: int,
    seed: int,
) -> Purified:
    """Adam on all parameters, norm statistics included.

    Args:
        radius: largest change of a pixel, in [0, 1]. inner_rate, inner_steps: of sign ascent.
        adversarial, shared: b1, b2. clean_weight, perturbed_weight, shared_weight: l1, l2, l3.
    """
    params.at_least(1, epochs=epochs, inner_steps=inner_steps)
    params.at_least(0, lr=lr, inner_rate=inner_rate, adversarial=adversarial, shared=shared)
    params.at_least(0, clean_weight=clean_weight, perturbed_weight=perturbed_weight)
    params.at_least(0, shared_weight=shared_weight)
    params.within("radius", radius, 0, 1)
    victim = copy.deepcopy(model).eval().requires_grad_(False)
    generator = torch.Generator(clean.y_N.device).manual_seed(seed)

    def loss(x_BCHW: Tensor, y_B: Tensor) -> Tensor:
        z_BCHW = shared_examples(
            model, victim, x_BCHW, y_B, radius=radius, rate=inner_rate, steps=inner_steps,
            adversarial=adversarial, shared=shared, generator=generator,
        )  # fmt: skip
        with torch.no_grad():
            fooled_B = answers(victim, z_BCHW).argmax(1)
        model.train()
        # Together, so that batch norm sees both, as in the published code.
        calm_BC, pushed_BC = answers(model, torch.cat([x_BCHW, z_BCHW])).chunk(2)
        return (
            clean_weight * cross_entropy(calm_BC, y_B)
            + perturbed_weight * cross_entropy(pushed_BC, y_B)
            + shared_weight * repeated(pushed_BC, fooled_B, y_B)
        )

    batches = batches_of(clean, batch_size=batch_size, shift=shift, seed=seed)
    steps = epochs * batches.per_epoch
    optimizer = torch.optim.Adam(model.parameters(), lr)
    descend(model, batches, steps, loss, optimizer, what="unlearn shared examples")
    tuned = sum(parameter.numel() for parameter in model.parameters())
    return Purified(model.eval(), tuned, steps)


def repeated(logits_BC: Tensor, fooled_B: Tensor, y_B: Tensor) -> Tensor:
    """L_shared: mean over all images of -log(1 - p(y')) where y' is not the image's class."""
    p_B = logits_BC.softmax(1).gather(1, fooled_B[:, None]).squeeze(1)
    return (-(1 - p_B).clamp_min(SURE).log() * (fooled_B != y_B)).mean()


def shared_examples(
    model: Classifier,
    victim: Classifier,
    x_BCHW: Tensor,
    y_B: Tensor,
    *,
    radius: float,
    rate: float,
    steps: int,
    adversarial: float,
    shared: float,
    generator: torch.Generator,
) -> Tensor:
    """Images within the radius, in [0, 1]: sign ascent on the inner loss, from random corners."""
    model.eval()
    corner = torch.rand(x_BCHW.shape, generator=generator, device=x_BCHW.device) < 0.5
    d_BCHW = torch.where(corner, radius, -radius)
    for _ in range(steps):
        d_BCHW.requires_grad_()
        z_BCHW = (x_BCHW + d_BCHW).clamp(0, 1)
        value = inner(
            answers(model, z_BCHW), answers(victim, z_BCHW), y_B,
            adversarial=adversarial, shared=shared,
        )  # fmt: skip
        (gradient_BCHW,) = torch.autograd.grad(value, d_BCHW)
        d_BCHW = (d_BCHW.detach() + rate * gradient_BCHW.sign()).clamp(-radius, radius)
    return (x_BCHW + d_BCHW.detach()).clamp(0, 1)


def inner(a_BC: Tensor, b_BC: Tensor, y_B: Tensor, *, adversarial: float, shared: float) -> Tensor:
    """What the perturbation maximises, from both models' logits."""
    both = (cross_entropy(a_BC, y_B) + cross_entropy(b_BC, y_B)) / 2
    return adversarial * both - shared * jensen_shannon(a_BC, b_BC)


def jensen_shannon(a_BC: Tensor, b_BC: Tensor) -> Tensor:
    """Mean over images of the divergence between both answers, in nats: 0 to log 2."""
    log_a_BC, log_b_BC = a_BC.log_softmax(1), b_BC.log_softmax(1)
    log_m_BC = torch.logaddexp(log_a_BC, log_b_BC) - torch.log(a_BC.new_tensor(2.0))
    one_B = (log_a_BC.exp() * (log_a_BC - log_m_BC)).sum(1)
    other_B = (log_b_BC.exp() * (log_b_BC - log_m_BC)).sum(1)
    return (one_B + other_B).mean() / 2
