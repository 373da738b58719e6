"""NGF (Karim et al. 2023, arXiv 2306.17441): natural gradient on few parameters, with an anchor.

The paper tunes the classifier alone. That does not purify (docs/method.md), so this defense
departs from it in four moves: it damps channels whose stored batch-norm variance the clean split
cannot explain, recalibrates batch norm, tunes norm scales, norm shifts and the classifier by
natural gradient with the Fisher-weighted anchor, and recalibrates again. No convolution weight
changes. On a network without batch norm only the third move is left, on the classifier.
"""

from collections.abc import Iterator

from ngf import norms
from ngf.defenses import Clean, Purified
from ngf.fisher.natural import Rule, descend
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
    refresh: int,
    shift: int,
    seed: int,
) -> Purified:
    """Purify in four moves: damp, recalibrate, tune, recalibrate.

    Args:
        suppression: k in scale *= (1 + excess)^(-k/2); 0 leaves scales alone.
        views: augmented passes over the clean split for norm statistics and for F0.
        steps, batch_size: natural-gradient steps and the images of each.
        lr, eta, damping, refresh: see `ngf.fisher.natural.Rule`.
        shift: pixels of random translation in every view.

    The note `suspicion` is the summed excess variance: large where training images carried a
    pattern that the clean split lacks.
    """
    batches = Batches(
        clean.x_NHWC, clean.y_N, size=batch_size, shift=shift, flip=clean.flip, seed=seed
    )
    device, count = clean.y_N.device, views * batches.per_epoch

    def shown(what: str) -> Iterator[Batch]:
        return track(batches.take(count), what, count)

    has_norms = bool(batch_norms(model))
    suspicion = 0.0
    if has_norms:
        variances = norms.input_variances(model, shown("look for evidence"), device)
        suspicion = norms.damp(model, variances, suppression)
        norms.recalibrate(model, shown("recalibrate"), device)
    rule = Rule(lr, eta, damping, refresh)
    tuned = descend(model, batches, steps=steps, views=views, rule=rule, seed=seed)
    if has_norms:
        norms.recalibrate(model, shown("recalibrate again"), device)
    return Purified(model, tuned, steps, {"suspicion": suspicion})
