"""NGF (Karim et al. 2023, arXiv 2306.17441): natural gradient, few parameters, a Fisher anchor.

The paper tunes the classifier alone on clean images. That does not purify (docs/method.md), so this
defense uses the paper's means in three moves:

1. Sieve. Closed filters let through only what clean images use, as strongly as the loss on them
   allows. A copy is filtered without that care.
2. Expose. Find what misleads the model but not its copy.
3. Unlearn. Natural gradient on batch norms and head, with the Fisher-weighted anchor, on clean
   images and on some of them under what was found; on the more, the surer it is a backdoor.

It makes use of what batch norm remembers of triggered images, does not need it, and works without
batch norm, tuning the head alone after the sieve.
"""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ngf import params
from ngf.defenses import Clean, Purified
from ngf.device import autocast
from ngf.exposure import Exposed, expose
from ngf.fisher.natural import Rule, Show, descend
from ngf.models import Classifier
from ngf.progress import track
from ngf.sieve import observe, sieve, sieve_within
from ngf.training import Batch, Batches


def purify(
    model: Classifier,
    clean: Clean,
    *,
    weak: float,
    damp: float,
    budget: float,
    strong: float,
    moves: int,
    search: int,
    radius: float,
    reach: float,
    share: float,
    least_misled: float,
    least_evidence: float,
    when_evident: float,
    when_neither: float,
    trust: float,
    views: int,
    steps: int,
    batch_size: int,
    layers: str,
    fisher: str,
    lr: float,
    eta: float,
    damping: float,
    shift: int,
    seed: int,
) -> Purified:
    """Purify in three moves: sieve, expose, unlearn.

    Args:
        weak, damp, budget: see `ngf.sieve.sieve_within`.
        strong: the copy's `weak`, without a budget.
        moves, search, radius: see `ngf.exposure.expose`; `search` are its steps.
        reach: images are moved by up to `reach` times what was found.
        share: of a batch's images, shown a second time under a move.
        least_misled, least_evidence: from here on a suspicion counts, see the notes.
        when_evident: with evidence the sieve saw the backdoor and has most of it: reach and share
            become this share of themselves, or the share `misled` where that is more. So they do
            without batch norm, which has no evidence to give.
        when_neither: where nothing speaks, the model is benign or its backdoor hides: share becomes
            this share of itself; 0 leaves a benign model alone.
        trust: weight of the victim's answer to the clean image beside the label, in [0, 1].
        views: augmented passes over the clean split for the sieve and for the Fisher.
        steps, batch_size: natural-gradient steps and the clean images of each.
        layers, fisher, lr, eta, damping: see `ngf.fisher.natural.Rule`.
        shift: pixels of random translation in every view.

    Notes: `strength` of the sieve; two suspicions, `evidence` (what batch norm remembers beyond
    clean images, see `ngf.sieve`) and `misled` (see `ngf.exposure`); `suspected_target`, the class
    that images are drawn to, or -1.
    """
    params.at_least(1, views=views, moves=moves, search=search)
    params.at_least(0, steps=steps, weak=weak, damp=damp, budget=budget, strong=strong, reach=reach)
    params.within("radius", radius, 1e-6, 1)
    parts = {"when_evident": when_evident, "when_neither": when_neither}
    for name, part in {**parts, "share": share, "trust": trust}.items():
        params.within(name, part, 0, 1)
    rule = Rule(lr, eta, damping, fisher, layers)
    device = clean.y_N.device
    batches = Batches(
        clean.x_NHWC, clean.y_N, size=batch_size, shift=shift, flip=clean.flip, seed=seed
    )
    generator = torch.Generator(device).manual_seed(seed)

    victim = copy.deepcopy(model.eval())
    count = views * batches.per_epoch
    x_NCHW, y_N = map(torch.cat, zip(*track(batches.take(count), "sieve", count), strict=True))
    seen = observe(victim, x_NCHW, _answers(victim, (x_NCHW, y_N), trust))
    sieved, strength = sieve_within(victim, seen, weak=weak, damp=damp, budget=budget)
    model.load_state_dict(sieved.state_dict())  # tune what was given: a trail of it may be recorded
    strict = copy.deepcopy(victim)
    sieve(strict, seen, weak=strong, damp=damp)
    found = expose(
        # What the sieve already took cannot be exposed in the model any more.
        [victim, model],
        strict,
        track(batches.take(search), "expose", search),
        moves=moves,
        steps=search,
        radius=radius,
        device=device,
    )
    exposed = found.misled >= least_misled
    if seen.evidence >= least_evidence or not seen.excess:
        part = max(when_evident, found.misled)
        reach, share = part * reach, part * share
    elif not exposed:
        share = when_neither * share
    tuned = descend(
        model,
        batches,
        steps=steps,
        views=views,
        rule=rule,
        generator=generator,
        show=_shown(victim, trust, found, reach, share, generator),
    )
    target = -1 if found.target is None or not exposed else found.target
    notes = {
        "strength": strength,
        "evidence": seen.evidence,
        "misled": found.misled,
        "suspected_target": target,
    }
    return Purified(model, tuned, steps, notes)


def _shown(
    victim: Classifier,
    trust: float,
    found: Exposed,
    reach: float,
    share: float,
    generator: torch.Generator,
) -> Show:
    """Shows a batch as it is, then the first `share` of it under parts of the moves.

    A moved image keeps the answer to the image as it was.
    """

    def draw(count: int) -> Tensor:
        return torch.rand(count, generator=generator, device=generator.device)

    @contextlib.contextmanager
    def show(batch: Batch) -> Iterator[Batch]:
        x_NCHW, y_N = batch
        p_NK = _answers(victim, batch, trust)
        count = round(share * len(y_N))
        which_N = (draw(count) * len(found.moves_MCHW)).long()
        length_N = reach * draw(count)
        move_NCHW = length_N[:, None, None, None] * found.moves_MCHW[which_N]
        moved_NCHW = (x_NCHW[:count] + move_NCHW).clamp(0, 1)
        yield torch.cat([x_NCHW, moved_NCHW]), torch.cat([p_NK, p_NK[:count]])

    return show


@torch.no_grad()
def _answers(victim: Classifier, batch: Batch, trust: float) -> Tensor:
    """What the model shall answer: between the labels and the victim's probabilities [B, K]."""
    x_NCHW, y_N = batch
    with autocast(x_NCHW.device):
        p_NK = victim(x_NCHW).float().softmax(1)
    return torch.lerp(one_hot(y_N, p_NK.shape[1]).float(), p_NK, trust)
