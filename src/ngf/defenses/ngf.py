"""NGF (Karim et al. 2023, arXiv 2306.17441): natural gradient, few parameters, a Fisher anchor.

The paper tunes the classifier alone on clean images. That does not purify (docs/method.md), so this
defense uses the paper's means in four moves:

1. Sieve. Closed filters let through only what clean images use, as strongly as the loss on them
   allows. A copy is filtered without that care.
2. Suspect. Find what leads the model astray, and not its copy: by gradients a warp and, where none
   does, a displacement of the whole image, then of windows of it, then a wave or a style, then a
   displacement for each class. Ask which class mixtures of two clean images are drawn to that
   is neither's.
3. Sieve again, against what leads it astray, after a milder first sieve where that is certain;
   where it is in doubt, against the waves that lead furthest, if clean images hardly notice.
4. Recover. Natural gradient on batch norms and head, with the Fisher-weighted anchor, on clean
   images, on some of them under what was found, and on mixtures of two clean images: as the victim
   answers them (where it is suspected, as far as the sieved model agrees, and more of the class
   that the sieve took from) or, where they draw it to a third class, as they should be answered.

It makes use of what batch norm remembers of triggered images, does not need it, and works without
batch norm, tuning the head alone in the end.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ngf import params
from ngf.defenses import Clean, Purified
from ngf.exposure import Suspicion
from ngf.fisher.moments import displacement_moments
from ngf.fisher.natural import Rule, Show, descend
from ngf.looks import LASTING, Looks
from ngf.margins import Probability
from ngf.mixtures import Mixtures
from ngf.models import Classifier
from ngf.progress import track
from ngf.sieve import Observed, Sieve, observe, sieve, sieve_against_within
from ngf.training import Batch, Batches
from ngf.views import Views

Move = Callable[[Tensor], Tensor]  # displaces images [N, C, H, W]
More = Callable[[Batch], Batch]  # what is shown beside a batch; answers are probabilities

LEAST = 384  # images that the sieves see, whatever there are: fewer do not fill a deep layer's A
AT_ONCE = 2**24  # pixels of the images that the sieves see: what a layer holds must fit in memory
IN_A_STEP = 2**21  # and of those that a step of the search sees
JOINED = 768  # mixtures that the sieve sees
SLIGHT = 0.0003  # lambda beside mu: keeps the second sieve's inverse well-posed
MILD = 0.25  # share of the first sieve's budget where the second one knows what to filter
MUCH = 0.5  # left of what leads astray, from which on one search does not show all of it
ROUNDS = 2  # of the second sieve then
FAR = 2.0  # times the sure gap, beyond which nothing was found that clean images use
HALF = 0.5  # of the images moved as was found first, where more was found, or as mirrored
HARD = 0.5  # hard mixtures, as a share of the mixtures that are shown elsewhere
RANGES = {
    **dict.fromkeys(("views", "moves", "search", "mixed"), (1, math.inf)),
    **dict.fromkeys(("weak", "damp", "budget", "strong", "firm", "reach"), (0, math.inf)),
    **dict.fromkeys(("mixed_firm", "mixed_longer", "answered", "steps"), (0, math.inf)),
    **dict.fromkeys(("warps", "window", "waves", "styles", "classes", "doubt"), (0, 1)),
    **dict.fromkeys(("share", "trust", "mixed_lead", "mixed_gap"), (0, 1)),
    **dict.fromkeys(("radius", "sure_gap"), (1e-6, 1)),
}


def purify(
    model: Classifier,
    clean: Clean,
    *,
    weak: float,
    damp: float,
    budget: float,
    strong: float,
    warps: float,
    search: int,
    least_gap: float,
    sure_gap: float,
    firm: float,
    doubt: float,
    window: float,
    waves: float,
    styles: float,
    classes: float,
    moves: int,
    radius: float,
    reach: float,
    share: float,
    trust: float,
    views: int,
    mixed: int,
    mixed_lead: float,
    mixed_gap: float,
    mixed_firm: float,
    mixed_longer: float,
    answered: float,
    steps: int,
    batch_size: int,
    layers: str,
    fisher: str,
    lr: float,
    eta: float,
    damping: float,
    damping_last: float,
    shift: int,
    seed: int,
) -> Purified:
    """Purify in four moves: sieve, suspect, sieve again, recover.

    Args:
        weak, damp, budget: see `ngf.sieve.Sieve`. Where a displacement of the whole image or of
            windows shows a backdoor without doubt that the second sieve filters whatever it costs,
            the first one that the model keeps has a budget of MILD times that or, for windows, of
            what the second one's lacks, if that is more.
        strong: the copy's `weak`, without a budget.
        warps: largest root mean square of the ways of warps, as shares of the image's side, that
            are searched first, see `ngf.warps`; 0 searches none.
        search: steps of each search, see `ngf.exposure`.
        least_gap: a backdoor is suspected where the model strays so much further than its copy.
        sure_gap: from here on without doubt.
        firm: largest mu of the second sieve, see `ngf.sieve.sieve_against_within`; 0 leaves it out.
            Its budget is `budget` where what is suspected without doubt leads the sieved model as
            far astray as the victim (`Suspicion.left` 1), and less in proportion to the
            product of both. Where even the least mu costs more, that is taken, unless clean images
            may use what was found: LASTING or more of it is left and the gap lies below FAR times
            `sure_gap`.
        doubt: share of `budget` that a second sieve may cost, against the waves that lead furthest,
            where nothing is suspected, mixtures show no class and waves were tried; 0 leaves it
            out.
        window: largest root mean square, over the whole image, of the displacements in windows that
            are searched where the whole image shows nothing or little (`ngf.looks.CLEAR`), see
            `ngf.exposure`; the larger gap counts, and the other as well where it is enough. 0
            searches none.
        waves: root mean square of the waves that are tried where nothing is suspected still, see
            `ngf.waves`; 0 tries none.
        styles: largest root mean square of the kernels of styles that are searched beside waves,
            see `ngf.styles`, of which the larger gap counts, and the other as well where it is
            enough; 0 searches none. Where no look shows enough, styles and windows are searched
            once more.
        classes: largest root mean square of the displacements that are searched then, one for each
            class, where there are no more of them than `ngf.looks.CLASSES`, and where mixtures
            do not show a class, which is then known for two others together; 0 searches none. All
            gaps count alike.
        moves, radius: how many displacements to the suspected class stand for its backdoor, and
            their largest root mean square, in pixel values of [0, 1]; twice as many where MUCH is
            left. What was found does itself where it leads to no one class, or is a warp, a wave, a
            style or one class's. Where it lies in a window, `moves` at most that `ngf.places` finds
            there, and where training mirrors images their mirror images.
        reach: images are moved by up to `reach` times such a displacement.
        share: of a batch's images, shown a second time when moved, in the last move; times that
            product.
        trust: weight of the victim's answer to the clean image beside the label, in [0, 1], where
            the victim names the image as the label does; elsewhere the label alone counts.
        views: augmented passes over the clean split for the sieve and for the Fisher; more for the
            sieve where these are fewer than LEAST images.
        mixed: pairs of clean images that are mixed and shown to the victim.
        mixed_lead, mixed_gap: from which lead, or gap of two classes, on the model is sieved
            against what joining adds, mu being mixed_firm or, in steps down to a sixteenth, what
            `budget` allows, and the last move shows the hard mixtures and makes mixed_longer times
            the steps; not where the copy's gaps explain its own (`Mixtures.drawn_to`), nor where
            their third class is the one that is suspected without doubt already. Where nothing is
            suspected so too for the class that `Mixtures.tells_of`.
        answered: mixtures shown for each clean image: HARD times so many hard ones or, below both,
            any, as the victim answers them; where something is suspected no more of its class, or
            of any where that is not one or the third class is known so, than the sieved model
            gives; and nothing of that third class. As many hold the suspected class, where it is
            not that one, beside those that do by chance, as the sieved model sees it in no more.
        steps, batch_size: natural-gradient steps and the clean images of each.
        layers, fisher, lr, eta, damping, damping_last: see `ngf.fisher.natural.Rule`.
        shift: pixels of random translation in every view.

    Notes: `strength` of the sieve; `evidence`, what batch norm remembers beyond clean images (see
    `ngf.sieve`); `gap`, how much further the model strays than its copy, in the look that showed
    enough or else may show most (`ngf.looks`): then it is at most that; `suspected`, 1 where it is
    enough; `suspected_target`, the class it is led to, or -1 where there is no one class;
    `firmness`, the mu that was taken; `mixed_lead`, by how much one class draws mixtures of two
    others more than the next (`Mixtures.lead`); `mixed_gap`, by how much further than in the copy
    it draws those of two classes (`Mixtures.met`); `mixed_target`, that class where either is
    enough or, where nothing is suspected, the one that `Mixtures.tells_of`, else -1.
    """
    _check(locals())
    rule = Rule(lr, eta, damping, fisher, layers, damping_last)
    generator, own_chance = (
        torch.Generator(clean.y_N.device).manual_seed(number) for number in (seed, seed + 1)
    )
    clean_views = Views(clean, shift=shift, seed=seed)
    victim = copy.deepcopy(model.eval())
    own = clean_views.batches(batch_size)
    pixels = clean.x_NHWC[0, :, :, 0].numel()
    most = max(1, IN_A_STEP // pixels)
    x_NCHW, y_N = _for_sieves(own, views, pixels)
    target_NK = _answers(victim, (x_NCHW, y_N), trust)
    seen = observe(victim, x_NCHW, target_NK)
    first = Sieve(victim, seen, weak=weak, damp=damp)
    sieved, strength = first.within(budget)
    strict = copy.deepcopy(victim)
    sieve(strict, seen, weak=strong, damp=damp)
    pairs = Mixtures(victim, strict, x_NCHW, y_N, target_NK, count=mixed, generator=own_chance)
    looks = Looks(
        *(victim, sieved, strict, x_NCHW, y_N),
        draw=clean_views.draw,
        apart=clean_views.apart,
        by_class=clean_views.by_class,
        generator=own_chance,
        most=most,
        steps=search,
        moves=moves,
    )
    third = pairs.drawn_to(mixed_lead, mixed_gap)
    found = looks.first(
        least_gap,
        warps=warps,
        window=window,
        waves=waves,
        styles=styles,
        classes=classes if third < 0 else 0.0,
    )
    suspected = found.gap >= least_gap
    certain = suspected and found.gap >= sure_gap
    needed = suspected and _goes_whatever_it_costs(found, sure_gap)
    if third < 0 and not suspected:
        third = pairs.tells_of()
    if firm and certain and needed and not found.in_part:
        kept = max(MILD, 1 - found.left) if found.windowed else MILD
        sieved, strength = first.within(kept * budget)
        found = looks.seen_in(sieved, found)
    model.load_state_dict(sieved.state_dict())  # tune what was given: a trail of it may be recorded
    part = found.left * min(1.0, max(0.0, found.gap / sure_gap))
    against = found if suspected else looks.rippled if doubt and third < 0 else None
    firmness = 0.0
    more: list[More] = []
    if firm and against:
        move, firmness = _sieve_again(
            model,
            sieved,
            observe(model, x_NCHW, target_NK),
            lambda net: looks.stand_for(against, radius, net),
            lambda moves: _mover(against, moves, reach, clean.flip, generator),
            firm=firm,
            budget=budget * (part if suspected else doubt),
            needed=needed,
            rounds=ROUNDS if suspected and found.followed and found.left >= MUCH else 1,
        )
        if suspected:
            more.append(_moved(move, part * share))
    as_answered = third < 0 or (certain and found.target == third)
    share_of_own = answered if as_answered else HARD * answered
    size = min(max(own.size, most), round(share_of_own * own.size))
    if as_answered:
        filtered = copy.deepcopy(model) if suspected else None
        label = found.target if suspected and third < 0 else -1
        more.append(_mixed(pairs, victim, filtered, size, third, label))
    else:
        if mixed_firm:
            now = observe(model, x_NCHW, target_NK)
            _sieve_joined(model, now, pairs, third, pixels, firm=mixed_firm, budget=budget)
        steps = round(mixed_longer * steps)
        more.append(lambda _: pairs.hard(size, third))
    show = _shown(victim, trust, more)
    tuned = descend(model, own, steps=steps, views=views, rule=rule, generator=generator, show=show)
    notes = {
        "strength": strength,
        "evidence": seen.evidence,
        "gap": found.gap,
        "suspected": int(suspected),
        "suspected_target": found.target if suspected else -1,
        "firmness": firmness,
        "mixed_lead": pairs.lead,
        "mixed_gap": pairs.met.gap,
        "mixed_target": third,
    }
    return Purified(model, tuned, steps, notes)


def _check(given: Mapping[str, Any]) -> None:
    for name, (low, high) in RANGES.items():
        params.within(name, given[name], low, high)


def _goes_whatever_it_costs(found: Suspicion, sure_gap: float) -> bool:
    """Whether the second sieve is due even if the budget does not allow the least of it.

    What the first sieve hardly weakens may be what clean images use, as stripes are a sea's to some
    victims that are benign, unless the gap lies far beyond theirs.
    """
    return found.left < LASTING or found.gap >= FAR * sure_gap


def _for_sieves(own: Batches, views: int, pixels: int) -> Batch:
    """The images that the sieves see, in so many views or more, of so many pixels each."""
    count = max(views * own.per_epoch, math.ceil(LEAST / own.size))
    count = max(1, min(count, AT_ONCE // (own.size * pixels)))
    x_NCHW, y_N = map(torch.cat, zip(*track(own.take(count), "sieve", count), strict=True))
    return x_NCHW, y_N


def _sieve_again(
    model: Classifier,
    sieved: Classifier,
    now: Observed,
    stand_for: Callable[[Classifier], Tensor],
    mover: Callable[[Tensor], Move],
    *,
    firm: float,
    budget: float,
    needed: bool,
    rounds: int,
) -> tuple[Move, float]:
    """The second sieve of the model, in place, against what stands for the backdoor.

    Returns how that moves images, and mu. `sieved` is the model as it is before, `now` what a pass
    shows of it.

    What one search finds is a part of what is left. So each further round searches what the model
    lets through by then, and the sieved model is filtered anew against all that was found, within
    the same budget.
    """
    moves_MCHW = stand_for(sieved)
    for again in range(rounds):
        if again:
            moves_MCHW = torch.cat([moves_MCHW, stand_for(model)])
            model.load_state_dict(sieved.state_dict())
        move = mover(moves_MCHW)
        added = displacement_moments(model, now.x_NCHW, move(now.x_NCHW))
        firmness = sieve_against_within(
            model, now, added, weak=SLIGHT, firm=firm, budget=budget, needed=needed
        )
    return move, firmness


def _sieve_joined(
    model: Classifier,
    now: Observed,
    pairs: Mixtures,
    third: int,
    pixels: int,
    *,
    firm: float,
    budget: float,
) -> None:
    """The model sieved, in place, against what joining two images adds; `now` as above."""
    added = pairs.added(model, max(1, min(JOINED, AT_ONCE // (3 * pixels))), third)
    sieve_against_within(model, now, added, weak=SLIGHT, firm=firm, budget=budget, needed=False)


def _mover(
    found: Suspicion, moves_MCHW: Tensor, reach: float, flip: bool, generator: torch.Generator
) -> Move:
    """Moves each image along one of the displacements, by up to `reach` times its length.

    Half of the images, at random, along what was found beside it, if anything was. And half of them
    as their mirror image would be where training mirrors images (`flip`) and it lies in a window: a
    patch is then learned in two places, of which a window shows one.
    """

    def draw(count: int) -> Tensor:
        return torch.rand(count, generator=generator, device=generator.device)

    def half(count: int) -> Tensor:
        return (draw(count) < HALF)[:, None, None, None]

    def move(x_NCHW: Tensor) -> Tensor:
        which_N = (draw(len(x_NCHW)) * len(moves_MCHW)).long()
        length_N = reach * draw(len(x_NCHW))
        return found.displace(x_NCHW, length_N[:, None, None, None] * moves_MCHW[which_N])

    def mirrored(x_NCHW: Tensor) -> Tensor:
        turned_N111 = half(len(x_NCHW))
        moved_NCHW = move(x_NCHW.flip(3).where(turned_N111, x_NCHW))
        return moved_NCHW.flip(3).where(turned_N111, moved_NCHW)

    own = mirrored if flip and found.windowed else move
    if found.beside is None:
        return own
    other = _mover(found.beside, found.beside.moves_MCHW, reach, flip, generator)

    def either(x_NCHW: Tensor) -> Tensor:
        first_N111 = half(len(x_NCHW))
        return own(x_NCHW).where(first_N111, other(x_NCHW))

    return either


def _moved(move: Move, share: float) -> More:
    """The first `share` of a batch, moved; the answers stay."""

    def more(batch: Batch) -> Batch:
        x_NCHW, p_NK = batch
        count = round(share * len(p_NK))
        return move(x_NCHW[:count]), p_NK[:count]

    return more


def _mixed(
    pairs: Mixtures,
    victim: Classifier,
    filtered: Classifier | None,
    size: int,
    never: int,
    label: int,
) -> More:
    """Mixtures as the victim answers them, as far as the filtered model agrees.

    label: the suspected class, or -1 where there is no one class or mixtures show it themselves:
    then what the victim sees of it there is not only what clean images show. Else the sieve took
    from that, too. So as many mixtures hold it, beside those that do by chance, as it is seen in no
    more.
    """
    share = pairs.lost(victim, filtered, label) if filtered else 0.0
    return lambda _: pairs.answered(victim, size, filtered, never, label=label, share=share)


def _shown(victim: Classifier, trust: float, more: Sequence[More]) -> Show:
    """Shows a batch with its answers, and what else there is."""

    @contextlib.contextmanager
    def show(batch: Batch) -> Iterator[Batch]:
        own = batch[0], _answers(victim, batch, trust)
        shown = [own, *(another(own) for another in more)]
        x_NCHW, p_NK = map(torch.cat, zip(*shown, strict=True))
        yield x_NCHW, p_NK

    return show


def _answers(victim: Classifier, batch: Batch, trust: float) -> Tensor:
    """What the model shall answer: between the labels and the victim's probabilities [B, K].

    Where the victim is wrong the label alone: an attacker who recalibrates batch norm may leave a
    victim that is wrong often, and to keep its answers would keep the backdoor.
    """
    x_NCHW, y_N = batch
    p_NK = Probability(victim)(x_NCHW)
    trust_N1 = trust * (p_NK.argmax(1, keepdim=True) == y_N[:, None])
    return torch.lerp(one_hot(y_N, p_NK.shape[1]).float(), p_NK, trust_N1)
