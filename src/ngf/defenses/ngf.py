"""NGF (Karim et al. 2023, arXiv 2306.17441): natural gradient on few parameters, with an anchor.

The paper tunes the classifier alone. That does not purify (docs/method.md), so this defense
departs from it in four moves: it damps channels whose stored batch-norm variance the clean split
cannot explain, recalibrates batch norm, tunes norm scales, norm shifts and the classifier by
natural gradient with the Fisher-weighted anchor, on clean images and on the same images moved to
where batch norm remembers triggered ones, and recalibrates again. No convolution weight changes.
On a network without batch norm only natural gradient on the classifier is left.
"""

from collections.abc import Iterator

import torch

from ngf import norms, params
from ngf.defenses import Clean, Purified
from ngf.fisher.natural import Rule, descend
from ngf.models import Classifier, batch_norms
from ngf.progress import track
from ngf.replay import Replay, suspected_target
from ngf.training import Batch, Batches


def purify(
    model: Classifier,
    clean: Clean,
    *,
    suppression: float,
    reach: float,
    views: int,
    steps: int,
    batch_size: int,
    lr: float,
    eta: float,
    damping: float,
    shift: int,
    seed: int,
) -> Purified:
    """Purify in four moves: damp, recalibrate, tune, recalibrate.

    Args:
        suppression: k in scale *= (1 + excess)^(-k/2); 0 leaves scales alone.
        reach: see `ngf.replay.Replay`.
        views: augmented passes over the clean split for norm statistics and for the Fisher.
        steps, batch_size: natural-gradient steps and the images of each.
        lr, eta, damping: see `ngf.fisher.natural.Rule`.
        shift: pixels of random translation in every view.

    Notes: `suspicion` is the summed excess variance, large where training images carried a pattern
    that the clean split lacks; `suspected_target` the class that the pattern leads to, or -1.
    """
    params.at_least(1, views=views)
    params.at_least(0, steps=steps, reach=reach, suppression=suppression)
    batches = Batches(
        clean.x_NHWC, clean.y_N, size=batch_size, shift=shift, flip=clean.flip, seed=seed
    )
    device, count = clean.y_N.device, views * batches.per_epoch
    generator = torch.Generator(device).manual_seed(seed)
    rule = Rule(lr, eta, damping)

    def shown(what: str) -> Iterator[Batch]:
        return track(batches.take(count), what, count)

    if not batch_norms(model):
        tuned = descend(model, batches, steps=steps, views=views, rule=rule, generator=generator)
        return Purified(model, tuned, steps)
    n_classes = len(model.card["classes"])
    moments = norms.input_moments(model, shown("look for evidence"), clean.y_N, n_classes)
    found = norms.evidence(model, moments)
    target = suspected_target(model, found, batches.take(batches.per_epoch), reach)
    # Against the other classes alone the shift also points to where the decision for the target
    # lies; against all of them it stops short of it.
    found = norms.evidence(model, moments, without=target)
    norms.damp(model, found, suppression)
    norms.recalibrate(model, shown("recalibrate"), device)
    replay = Replay(model, found, reach, generator)
    tuned = descend(
        model, batches, steps=steps, views=views, rule=rule, generator=generator, show=replay
    )
    norms.recalibrate(model, shown("recalibrate again"), device)
    suspicion = sum(layer.excess_C.sum().item() for layer in found)
    notes = {"suspicion": suspicion, "suspected_target": -1 if target is None else target}
    return Purified(model, tuned, steps, notes)
