"""NGF (Karim et al. 2023, arXiv 2306.17441): natural gradient, few parameters, a Fisher anchor.

The paper tunes the classifier alone on clean images. That does not purify (docs/method.md), so this
defense uses the paper's means in three moves:

1. Decay. One closed natural-gradient step on the weights' norm, held by the Fisher of clean images:
   what they do not use goes to zero. Weakly for the model, strongly for a copy.
2. Expose. Find what misleads the model but not its copy.
3. Unlearn. Natural gradient on batch norms and head, with the Fisher-weighted anchor, on clean
   images and on the same images under what was found, all with their true labels.

It asks nothing of batch norm and works without it, tuning the head alone after the decay. Where
there is batch norm, its statistics are computed anew on the clean split and follow it while the
model is tuned.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch

from ngf import norms, params
from ngf.defenses import Clean, Purified
from ngf.exposure import Exposed, expose
from ngf.fisher.decay import decay
from ngf.fisher.natural import Rule, Show, descend
from ngf.models import Classifier
from ngf.progress import track
from ngf.training import Batch, Batches

SEARCH_BATCH = 256
FOLLOW = 0.1  # share of the way that norm statistics go to each batch's


def purify(
    model: Classifier,
    clean: Clean,
    *,
    weak: float,
    strong: float,
    moves: int,
    search: int,
    radius: float,
    reach: float,
    least_misled: float,
    views: int,
    steps: int,
    batch_size: int,
    lr: float,
    eta: float,
    damping: float,
    shift: int,
    seed: int,
) -> Purified:
    """Purify in three moves: decay, expose, unlearn.

    Args:
        weak, strong: decay of the model and of its copy, see `ngf.fisher.decay`; 0 is none.
        moves, search, radius: see `ngf.exposure.expose`; `search` are its steps.
        reach: images are moved by up to `reach` times what was found.
        least_misled: where less than this share of images was misled, no backdoor was exposed, and
            the model is tuned on clean images alone.
        views: augmented passes over the clean split for norm statistics and for the Fisher.
        steps, batch_size: natural-gradient steps and the clean images of each.
        lr, eta, damping: see `ngf.fisher.natural.Rule`.
        shift: pixels of random translation in every view.

    Notes: `misled`, the share of images that what was found misleads, is the defense's suspicion;
    `suspected_target` is the class they are drawn to, or -1.
    """
    params.at_least(1, views=views, moves=moves, search=search)
    params.at_least(0, steps=steps, weak=weak, strong=strong, reach=reach)
    params.within("radius", radius, 1e-6, 1)
    device = clean.y_N.device
    look: dict[str, Any] = {"shift": shift, "flip": clean.flip}
    batches = Batches(clean.x_NHWC, clean.y_N, size=batch_size, seed=seed, **look)
    wide = Batches(clean.x_NHWC, clean.y_N, size=SEARCH_BATCH, seed=seed, **look)
    generator = torch.Generator(device).manual_seed(seed)

    def recalibrate(net: Classifier) -> None:
        count = views * batches.per_epoch
        norms.recalibrate(net, track(batches.take(count), "recalibrate", count), device)

    recalibrate(model)
    before, strict = copy.deepcopy(model), copy.deepcopy(model)
    x_NCHW = torch.cat([x for x, _ in batches.take(views * batches.per_epoch)])
    for net, strength in ((model, weak), (strict, strong)):
        if strength:
            decay(net, x_NCHW, strength)
            recalibrate(net)
    del x_NCHW
    found = expose(
        # What the weak decay already took cannot be exposed in the model any more.
        [before, model] if weak else [model],
        strict,
        track(wide.take(search), "expose", search),
        moves=moves,
        steps=search,
        radius=radius,
        device=device,
    )
    moved = found.misled >= least_misled
    show = _moved(model, found, reach, generator) if moved else _followed(model)
    rule = Rule(lr, eta, damping)
    tuned = descend(
        model, batches, steps=steps, views=views, rule=rule, generator=generator, show=show
    )
    recalibrate(model)
    target = -1 if found.target is None or not moved else found.target
    return Purified(model, tuned, steps, {"misled": found.misled, "suspected_target": target})


def _followed(model: Classifier) -> Show:
    """Shows a batch as it is, after the norm statistics have followed it."""

    @contextlib.contextmanager
    def show(batch: Batch) -> Iterator[Batch]:
        norms.follow(model, batch[0], FOLLOW)
        yield batch

    return show


def _moved(model: Classifier, found: Exposed, reach: float, generator: torch.Generator) -> Show:
    """Shows a batch twice: as it is, and each image under a part of one of the moves."""

    def draw(count: int) -> torch.Tensor:
        return torch.rand(count, generator=generator, device=generator.device)

    @contextlib.contextmanager
    def show(batch: Batch) -> Iterator[Batch]:
        x_NCHW, y_N = batch
        norms.follow(model, x_NCHW, FOLLOW)
        which_N = (draw(len(y_N)) * len(found.moves_MCHW)).long()
        length_N = reach * draw(len(y_N))
        move_NCHW = length_N[:, None, None, None] * found.moves_MCHW[which_N]
        yield torch.cat([x_NCHW, (x_NCHW + move_NCHW).clamp(0, 1)]), torch.cat([y_N, y_N])

    return show
