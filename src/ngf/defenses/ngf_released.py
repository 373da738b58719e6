"""NGF as its released code behaves, which is not what its paper describes.

The paper (Karim et al. 2023, arXiv 2306.17441) tunes one layer by natural gradient with a Fisher
regulariser. `Purification_NGF.py` of the anonymous repository kr-anonymous/ngf-animus hands all
parameters to the optimizer, in train mode: the classifier head gets an EKFAC natural gradient
(`_released_ekfac`), everything else plain SGD with the same learning rate and momentum, batch-norm
statistics keep adapting, and there is no regulariser.

Kept from that code: batches drawn with replacement, the late weight decay, and a learning rate
that falls once. Its scheduler steps before each of 5 rounds of 100 iterations and multiplies by
0.1 at rounds 1 and 3 of 0 to 5, so the nominal 0.01 is never used: 1e-3 holds for iterations 1 to
200 and 1e-4 for the rest. `lr` here is the first rate that is used.

Not kept: images move by `shift` pixels with mirrored borders (there: 4 of 32 with black ones), and
the network runs in bfloat16 where the processor has it, like every defense here.
"""

from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from ngf import params, trail
from ngf.defenses import Clean, Purified
from ngf.defenses._released_ekfac import FACTORS_EVERY, Ekfac
from ngf.device import autocast
from ngf.errors import InputError
from ngf.models import Classifier, head
from ngf.progress import track
from ngf.training import Batch, augment, pixels

DECAY_FROM = 20 * FACTORS_EVERY  # the first step with weight decay, whatever the number of steps


def purify(
    model: Classifier,
    clean: Clean,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    damping: float,
    stat_decay: float,
    kl_clip: float,
    shift: int,
    seed: int,
) -> Purified:
    """Train all parameters for `steps` steps, the head by natural gradient.

    Args:
        lr: learning rate of the first two fifths of the steps; a tenth of it holds for the rest.
        weight_decay: from step 200 on.
        damping, stat_decay, kl_clip: see `ngf.defenses._released_ekfac.Ekfac`.
        shift: pixels of random translation.

    Raises:
        InputError: the weights are not finite, at the end or where EKFAC needs them to be.
    """
    params.at_least(1, steps=steps, batch_size=batch_size)
    params.at_least(0, lr=lr, momentum=momentum, weight_decay=weight_decay)
    params.at_least(0, damping=damping, kl_clip=kl_clip)
    params.within("stat_decay", stat_decay, 0, 1)
    params.within("shift", shift, 0, min(clean.x_NHWC.shape[1:3]) - 1)
    ekfac = Ekfac(head(model), damping=damping, stat_decay=stat_decay, kl_clip=kl_clip)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum)
    drawn = draw(clean, steps, size=batch_size, shift=shift, seed=seed)
    model.train()
    try:
        with ekfac.watching():
            for step, (x_BCHW, y_B) in enumerate(track(drawn, "NGF as released", steps)):
                rate = learning_rate(step, steps, lr)
                decay = weight_decay if step >= DECAY_FROM else 0
                optimizer.param_groups[0].update(lr=rate, weight_decay=decay)
                with autocast(x_BCHW.device):
                    logits_BC = model(x_BCHW)
                optimizer.zero_grad(set_to_none=True)
                cross_entropy(logits_BC.float(), y_B).backward()
                ekfac.precondition(rate)
                optimizer.step()
                trail.mark(model, step + 1, steps)
    except FloatingPointError as error:
        raise _diverged(lr, damping) from error
    if not all(weight.isfinite().all() for weight in model.state_dict().values()):
        raise _diverged(lr, damping)
    tuned = sum(parameter.numel() for parameter in model.parameters())
    return Purified(model.eval(), tuned, steps)


def learning_rate(step: int, steps: int, lr: float) -> float:
    """`lr` for the first two fifths of the steps, which count from 0, and a tenth of it then."""
    return lr if 5 * step < 2 * steps else lr / 10


def draw(clean: Clean, count: int, *, size: int, shift: int, seed: int) -> Iterator[Batch]:
    """`count` augmented batches of `size` images drawn with replacement, as released."""
    device = clean.y_N.device
    generator = torch.Generator(device).manual_seed(seed)
    for _ in range(count):
        rows_B = torch.randint(len(clean.y_N), (size,), generator=generator, device=device)
        x_BHWC = augment(clean.x_NHWC[rows_B], shift=shift, flip=clean.flip, generator=generator)
        yield pixels(x_BHWC), clean.y_N[rows_B]


def _diverged(lr: float, damping: float) -> InputError:
    return InputError(
        f"NGF as released diverged: weights are not finite; lower lr (now {lr:g}) or raise the "
        f"damping (now {damping:g})"
    )
