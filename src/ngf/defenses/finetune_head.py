"""Fine-tuning of the classifier head alone: what tuning one layer does without natural gradient.

Everything before the head is frozen and batch norm stays in evaluation mode, so an augmented
image has the same features in every epoch: each view's are computed once, and an epoch costs a
matrix product. The numbers are BackdoorBench's for fine-tuning, as in `finetune`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngf import params, trail
from ngf.defenses import Clean, Purified
from ngf.device import autocast
from ngf.hooks import at_inputs
from ngf.models import Classifier, head
from ngf.progress import track
from ngf.training import augment, pixels


def purify(
    model: Classifier,
    clean: Clean,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    views: int,
    shift: int,
    seed: int,
) -> Purified:
    """Train the head by SGD with a cosine schedule; nothing else of the model changes.

    Args:
        epochs: passes over the clean split; epoch e uses view e modulo `views`.
        batch_size: of features; as in `ngf.training.Batches` the odd rest of a pass is left out.
        views: augmented copies of the clean split whose features are kept in memory.
        shift: pixels of random translation in every view.
    """
    params.at_least(1, epochs=epochs, batch_size=batch_size, views=views)
    params.at_least(0, lr=lr, momentum=momentum, weight_decay=weight_decay)
    params.within("shift", shift, 0, min(clean.x_NHWC.shape[1:3]) - 1)
    model.eval()
    layer, count = head(model), len(clean.y_N)
    size = min(batch_size, count)
    per_epoch = count // size
    generator = torch.Generator(clean.y_N.device).manual_seed(seed)
    features_VND = view_features(
        model, layer, clean, views=views, size=size, shift=shift, generator=generator
    )
    optimizer = torch.optim.SGD(layer.parameters(), lr, momentum, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    for epoch in track(range(epochs), "fine-tune the head", epochs):
        order_N = torch.randperm(count, generator=generator, device=clean.y_N.device)
        for batch, rows_B in enumerate(order_N[: per_epoch * size].split(size), 1):
            logits_BC = layer(features_VND[epoch % views, rows_B])
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(logits_BC, clean.y_N[rows_B]).backward()
            optimizer.step()
            schedule.step()
            trail.mark(model, epoch * per_epoch + batch, epochs * per_epoch)
    tuned = sum(parameter.numel() for parameter in layer.parameters())
    return Purified(model, tuned, epochs * per_epoch)


@torch.no_grad()
def view_features(
    model: Classifier,
    layer: nn.Linear,
    clean: Clean,
    *,
    views: int,
    size: int,
    shift: int,
    generator: torch.Generator,
) -> Tensor:
    """What reaches the head, `layer`, from `views` augmented passes over the clean split.

    Returns [views, N, D] in the head's own precision, the images in the split's order; `size` is
    how many images go through the network at once.
    """
    seen: list[Tensor] = []

    def keep(_: str, head: nn.Linear, h_ND: Tensor) -> None:
        seen.append(h_ND.to(head.weight.dtype))

    with at_inputs({"head": layer}, keep):
        for _ in track(range(views), "features of the views", views):
            x_NHWC = augment(clean.x_NHWC, shift=shift, flip=clean.flip, generator=generator)
            for x_BHWC in x_NHWC.split(size):
                with autocast(x_BHWC.device):
                    model(pixels(x_BHWC))
    return torch.cat(seen).unflatten(0, (views, len(clean.y_N)))
