"""NAD (Li et al., ICLR 2021, arXiv 2101.05930): a fine-tuned copy teaches where to look.

The teacher is the victim after a little fine-tuning. The student, the victim itself, is tuned with
it, and its attention maps are drawn to the teacher's: A(F) = sum over channels of |F|^p, of unit
length for each image; beta times the mean square between both (the released code's distance).

The maps are those that enter the layers where resolution falls, and the last one: in a residual
network the outputs of its groups. A network without convolution maps (a transformer) has none.
"""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ngf import params
from ngf.defenses import Clean, Purified
from ngf.defenses._steps import batches_of, descend, mean_loss, sgd
from ngf.errors import InputError
from ngf.hooks import at_inputs
from ngf.models import Classifier
from ngf.training import fit, pixels

Maps = dict[int, Tensor]  # by the number of their pixels


def purify(
    model: Classifier,
    clean: Clean,
    *,
    teacher_epochs: int,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    beta: float,
    maps: int,
    power: float,
    shift: int,
    seed: int,
) -> Purified:
    """Tune a copy, then all parameters towards the copy's attention.

    Args:
        teacher_epochs: of plain fine-tuning.
        beta: weight of the distance between attention maps.
        maps: how many, from the last one on; fewer where the network has fewer.
        power: p.

    Raises:
        InputError: the network has no feature maps.
    """
    params.at_least(1, teacher_epochs=teacher_epochs, epochs=epochs, maps=maps)
    params.at_least(0, lr=lr, momentum=momentum, weight_decay=weight_decay, beta=beta, power=power)
    sizes = _sizes(model, clean)[-maps:]
    rates = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    teacher = copy.deepcopy(model)
    batches = batches_of(clean, batch_size=batch_size, shift=shift, seed=seed)
    optimizer, schedule = sgd(teacher.parameters(), teacher_epochs * batches.per_epoch, **rates)
    fit(
        teacher, batches, epochs=teacher_epochs, optimizer=optimizer, scheduler=schedule,
        what="fine-tune the teacher",
    )  # fmt: skip
    teacher.eval().requires_grad_(False)
    model.train()
    with attention_of(model) as seen, attention_of(teacher) as shown:

        def loss(x_BCHW: Tensor, y_B: Tensor) -> Tensor:
            plain = mean_loss(model, x_BCHW, y_B)
            with torch.no_grad():
                mean_loss(teacher, x_BCHW, y_B)
            apart = [distance(seen[size], shown[size], power) for size in sizes]
            return plain + beta * torch.stack(apart).sum()

        steps = epochs * batches.per_epoch
        optimizer, schedule = sgd(model.parameters(), steps, **rates)
        descend(model, batches, steps, loss, optimizer, schedule, what="attend as the teacher")
    tuned = sum(parameter.numel() for parameter in model.parameters())
    return Purified(model.eval(), tuned, steps)


def distance(f_NCHW: Tensor, g_NCHW: Tensor, power: float) -> Tensor:
    """Mean square between the attention maps of two feature maps."""
    return mse_loss(attention(f_NCHW, power), attention(g_NCHW, power))


def attention(f_NCHW: Tensor, power: float) -> Tensor:
    """[N, H * W], each of unit length."""
    total_NP = f_NCHW.float().abs().pow(power).sum(1).flatten(1)
    return total_NP / (total_NP.norm(dim=1, keepdim=True) + 1e-6)


@contextlib.contextmanager
def attention_of(model: nn.Module) -> Iterator[Maps]:
    """Inside, the feature maps of the latest pass: of each resolution the last that enters a layer.

    It is what the layer sees that takes the resolution down, whatever the network calls it.
    """
    found: Maps = {}

    def keep(_: str, __: nn.Module, u: Tensor) -> None:
        if u.ndim == 4 and u.shape[2] * u.shape[3] > 1:
            found[u.shape[2] * u.shape[3]] = u

    leaves = {name: m for name, m in model.named_modules() if not list(m.children())}
    with at_inputs(leaves, keep):
        yield found


@torch.no_grad()
def _sizes(model: Classifier, clean: Clean) -> list[int]:
    """The resolutions, from the finest on, but for that of the images themselves."""
    x_NCHW = pixels(clean.x_NHWC[:1])
    with attention_of(model.eval()) as found:
        model(x_NCHW)
    # Images enter the first layer. Where it keeps their resolution, others come after them.
    sizes = [size for size, u in found.items() if u.shape[1] > x_NCHW.shape[1]]
    if not sizes:
        raise InputError("nad needs feature maps of convolutions, and the model has none")
    return sizes
