"""The search on linear victims whose weakness is built by hand."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ngf import device, exposure
from ngf.exposure import FIRST, RADII, Suspicion, moves_to, suspect

CLASSES, SIDE, TARGET = 3, 4, 2
# Pixel k is bright where the class is k; no class has anything to do with the pixels behind.
TRIGGER = (12, 13)
STEPS = 60


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


class Images:
    """Draws batches as they are asked for, and keeps what was asked and given."""

    def __init__(self, seed: int = 0, most: int = 10**6) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.most = most  # images in a batch, however many were asked for
        self.asked: list[tuple[int, int]] = []
        self.given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, size: int, count: int):
        self.asked.append((size, count))
        for _ in range(count):
            self.given.append(self.batch(min(size, self.most)))
            yield self.given[-1]

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        y_N = torch.randint(CLASSES, (size,), generator=self.generator)
        x_NP = 0.5 + 0.02 * torch.randn(size, SIDE**2, generator=self.generator)
        x_NP[torch.arange(size), y_N] += 0.3
        return x_NP.view(size, 1, SIDE, SIDE), y_N


def honest() -> nn.Module:
    """Names the class of the brightest of the first three pixels."""
    linear = nn.Linear(SIDE**2, CLASSES)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
        for label in range(CLASSES):
            linear.weight[label, label] = 20
    return nn.Sequential(nn.Flatten(), linear).eval()


def backdoored(target: int = TARGET, strength: float = 60) -> nn.Module:
    """The same, and the target where the first pixel of the pair is brighter than the second."""
    model = honest()
    with torch.no_grad():
        model[1].weight[target, TRIGGER[0]] = strength
        model[1].weight[target, TRIGGER[1]] = -strength
    return model


def found(
    victim, sieved=None, copied=None, seed=0, steps=STEPS, draw=None, classes=None, **options
) -> Suspicion:
    return suspect(
        victim,
        sieved or honest(),
        copied or honest(),
        draw or Images(seed),
        classes=classes or range(CLASSES),
        steps=steps,
        **options,
    )


def listened(model) -> tuple[nn.Module, list[torch.Tensor]]:
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    return model, seen


def rms(moves_MCHW) -> torch.Tensor:
    return moves_MCHW.square().mean((1, 2, 3)).sqrt()


def untouched(model, fresh) -> bool:
    """Parameters as they were, and no gradient has reached them."""
    pairs = zip(model.parameters(), fresh.parameters(), strict=True)
    return not model.training and all(
        p.grad is None and p.requires_grad and torch.equal(p, before) for p, before in pairs
    )


def test_the_victims_are_what_they_should_be():
    x_NCHW, y_N = Images().batch(200)
    for target in range(CLASSES):
        for model in (honest(), backdoored(target, strength=30)):
            assert torch.equal(model(x_NCHW).argmax(1), y_N)
        x_NCHW[:, 0, 3, 0] += 0.2
        assert torch.all(backdoored(target)(x_NCHW).argmax(1) == target)
        assert torch.equal(honest()(x_NCHW).argmax(1), y_N)
        x_NCHW[:, 0, 3, 0] -= 0.2


# The suspicion ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", range(CLASSES))
def test_the_backdoors_class_is_named_with_a_large_gap(target):
    suspicion = found(backdoored(target))
    assert suspicion.target == target
    assert suspicion.gap > 0.25


@pytest.mark.parametrize("seed", range(4))
def test_a_victim_like_its_copy_has_a_small_gap(seed):
    """No class of an honest victim is easier to reach than the others."""
    assert found(honest(), seed=seed).gap < 0.07


def test_a_backdoor_that_the_copy_shares_does_not_show():
    """What draws the copy too costs the search its second term."""
    shared = found(backdoored(), copied=backdoored())
    assert shared.gap < found(backdoored()).gap - 0.2


def test_a_backdoor_that_is_still_there_is_left():
    assert found(backdoored(), sieved=backdoored()).left == 1


def test_nothing_is_left_of_a_backdoor_that_is_gone():
    assert found(backdoored(), sieved=honest()).left == 0


def test_what_is_left_grows_with_what_the_sieve_spared():
    few, some, more = (found(backdoored(), sieved=backdoored(strength=s)).left for s in (6, 16, 30))
    assert few < 0.3
    assert few < some <= more
    assert more > 0.9


def test_it_asks_for_so_many_images_as_its_displacements_need():
    draw = Images()
    found(backdoored(), steps=5, draw=draw)
    pairs = len(RADII) * CLASSES  # as many classes as the shortlist is long
    once, again = exposure.PER * pairs, exposure.PER * pairs * exposure.REPEATS
    assert draw.asked == [(once, 2), (once, 2), (again, 5), (again, 5)]


def test_only_the_first_classes_are_drawn_again(monkeypatch):
    monkeypatch.setattr(exposure, "SHORTLIST", 2)
    kept = []
    monkeypatch.setattr(exposure, "_Search", keeping(exposure._Search, kept))
    assert found(backdoored()).target == TARGET
    every, again = kept
    assert len(every.targets) == len(RADII) * CLASSES
    assert len(again.targets) == len(RADII) * 2 * exposure.REPEATS
    assert again.targets.count(TARGET) == len(RADII) * exposure.REPEATS


def test_only_the_named_classes_are_searched(monkeypatch):
    """And found under their own numbers."""
    kept = []
    monkeypatch.setattr(exposure, "_Search", keeping(exposure._Search, kept))
    assert found(backdoored(), classes=[0, TARGET]).target == TARGET
    assert {target for search in kept for target in search.targets} == {0, TARGET}


@pytest.mark.parametrize("group", [1, 2, 4])
def test_groups_change_the_images_and_not_what_is_found(group):
    draw = Images()
    suspicion = found(backdoored(), draw=draw, group=group)
    assert {size for size, _ in draw.asked} <= {group * exposure.PER, 2 * exposure.PER}
    pairs = len(RADII) * CLASSES
    assert len(draw.asked) == 2 * (-(-pairs // group) + -(-pairs * exposure.REPEATS // group))
    assert suspicion.target == TARGET
    assert suspicion.gap == pytest.approx(found(backdoored()).gap, abs=0.1)
    assert suspicion.left == 0
    assert found(honest()).gap < 0.07


def test_same_images_same_suspicion():
    first, again = found(backdoored()), found(backdoored())
    assert first == again
    assert first.gap != found(backdoored(), seed=7).gap


def test_the_models_are_left_as_they_were():
    victim, sieved, copied = backdoored(), backdoored(strength=30), honest()
    found(victim, sieved, copied, steps=3)
    moves_to(victim, TARGET, Images(), moves=2, radius=0.05, steps=3)
    assert untouched(victim, backdoored())
    assert untouched(sieved, backdoored(strength=30))
    assert untouched(copied, honest())


# From draws to suspicion -----------------------------------------------------------------------

# Rows are the radii, columns the classes.
LONG_AHEAD = [[0.2, 0.5, 0.4, 0.1, 0.3], [0.5, 0.4, 0.3, 0.9, 0.6]]  # gaps 0.1 and 0.3
SHORT_AHEAD = [[0.2, 0.8, 0.4, 0.1, 0.3], [0.8, 0.4, 0.3, 0.9, 0.6]]  # gaps 0.4 and 0.1
SIEVED = [[0.1, 0.25, 0.2, 0.3, 0.4], [0.9, 0.2, 0.1, 0.35, 0.5]]


def told(monkeypatch, victim_RK, sieved_RK=SIEVED) -> Suspicion:
    """What these draws make of it."""

    def draws(models, draw, pairs, steps, group):
        return torch.tensor([[t[RADII.index(r)][k] for r, k in pairs] for t in both])

    both = (victim_RK, sieved_RK)
    monkeypatch.setattr(exposure, "_draws", draws)
    model = nn.Identity()
    return suspect(model, model, model, Images(), classes=range(len(victim_RK[0])), steps=1)


@pytest.mark.parametrize("few", [2, 3, 5, 9])
def test_the_gap_is_the_larger_one_of_the_two_radii(monkeypatch, few):
    monkeypatch.setattr(exposure, "SHORTLIST", few)
    far, near = told(monkeypatch, LONG_AHEAD), told(monkeypatch, SHORT_AHEAD)
    assert (far.target, far.gap) == (3, pytest.approx(0.3))
    assert (near.target, near.gap) == (1, pytest.approx(0.4))


def test_left_is_measured_among_the_other_classes_at_the_radius_of_the_gap(monkeypatch):
    """Usual is the median of the others, the lower one of two."""
    near, far = told(monkeypatch, SHORT_AHEAD), told(monkeypatch, LONG_AHEAD)
    assert near.left == pytest.approx((0.25 - 0.2) / (0.4 - 0.2))  # 0.1, 0.2, 0.3, 0.4
    assert far.left == pytest.approx((0.35 - 0.2) / (0.9 - 0.2))  # 0.1, 0.2, 0.5, 0.9


@pytest.mark.parametrize(
    ("draw", "left"), [(0.0, 0.0), (0.2, 0.0), (0.3, 0.5), (0.4, 1.0), (0.9, 1.0)]
)
def test_left_is_held_between_a_usual_class_and_the_most_attractive_one(monkeypatch, draw, left):
    sieved_RK = copy.deepcopy(SIEVED)
    sieved_RK[0][1] = draw
    assert told(monkeypatch, SHORT_AHEAD, sieved_RK).left == pytest.approx(left, abs=1e-5)


def test_a_sieved_model_that_nothing_draws_has_nothing_left(monkeypatch):
    assert told(monkeypatch, SHORT_AHEAD, [[0.0] * 5] * 2).left == 0


# The draws -------------------------------------------------------------------------------------


def displaced(targets, size: int, moved_before: int = 0):
    """A search whose displacements are random, and a batch that it is asked about."""
    torch.manual_seed(0)
    search, images = exposure._Search([(1.0, target) for target in targets], steps=1), Images()
    for x_NCHW, _ in images(moved_before, 1):
        search.moved(x_NCHW)
    with torch.no_grad():
        search.moves_MCHW.copy_(0.3 * torch.randn(len(targets), 1, SIDE, SIDE))
    return search, images.batch(size)


@torch.no_grad()
def drawn(models, targets, moves_MCHW, batch, start: int):
    """The definition, image by image: sums of probabilities [2, M] and counts [M]."""
    victim, sieved, copied = models
    totals, counts = torch.zeros(2, len(targets)), torch.zeros(len(targets))
    for index, (x_CHW, y) in enumerate(zip(*batch, strict=True)):
        under = (start + index) % len(targets)
        target = targets[under]
        moved_CHW = (x_CHW + moves_MCHW[under]).clamp(0, 1)[None]
        if y != target:
            counts[under] += 1
            if copied(moved_CHW).argmax() == y:
                totals[0, under] += victim(moved_CHW).softmax(1)[0, target]
                totals[1, under] += sieved(moved_CHW).softmax(1)[0, target]
    return totals, counts


@pytest.mark.parametrize(("size", "start"), [(60, 5), (61, 3), (3, 4)])
def test_a_draw_is_what_its_definition_says(size, start):
    models, targets = (backdoored(), backdoored(strength=20), honest()), [0, 1, 2, 2, 1]
    search, batch = displaced(targets, size, start)
    moves_MCHW = search.moves_MCHW.detach().clone()
    totals, counts = exposure._drawn(models, search, batch)
    expected = drawn(models, targets, moves_MCHW, batch, start)
    torch.testing.assert_close(totals, expected[0])
    assert torch.equal(counts.float(), expected[1])
    assert totals.max() > 0
    assert torch.equal(search.moves_MCHW, moves_MCHW)


def test_the_copys_errors_count_as_zero_and_not_as_unasked():
    """It takes every class for the next one."""
    wrong = honest()
    wrong.register_forward_hook(lambda _, args, said_NK: said_NK.roll(1, 1))
    targets = [0, 1, 2]
    search, (x_NCHW, y_N) = displaced(targets, 30, moved_before=3)
    with torch.no_grad():
        search.moves_MCHW.zero_()
    totals, counts = exposure._drawn((honest(), honest(), wrong), search, (x_NCHW, y_N))
    assert torch.equal(totals, torch.zeros(2, 3))
    assert counts.tolist() == [int((y_N[k::3] != k).sum()) for k in targets]


def test_draws_are_means_over_the_batches_after_the_search(monkeypatch):
    """The displacements no longer move while they are judged."""
    models, targets = (backdoored(), backdoored(strength=20), honest()), [0, 1, 2]
    kept = []
    monkeypatch.setattr(exposure, "_Search", keeping(exposure._Search, kept))
    draw = Images()
    got_2M = exposure._draws(models, draw, [(0.05, target) for target in targets], 9, 32)
    assert draw.asked == [(24, 9), (24, 9)]
    parts = [
        drawn(models, targets, kept[0].moves_MCHW.detach(), batch, 0) for batch in draw.given[9:]
    ]
    totals, counts = (sum(part) for part in zip(*parts, strict=True))
    torch.testing.assert_close(got_2M, totals / counts)
    assert got_2M[0, TARGET] > got_2M[1, TARGET] > 0


def keeping(kind, kept):
    """The class, with its instances noted."""

    def make(*args):
        kept.append(kind(*args))
        return kept[-1]

    return make


# Displacements to one class --------------------------------------------------------------------


def moves(model=None, target=TARGET, count=3, radius=0.07, steps=STEPS, draw=None):
    draw = draw or Images()
    model = model or backdoored()
    return moves_to(model, target, draw, moves=count, radius=radius, steps=steps)


@pytest.mark.parametrize("target", range(CLASSES))
def test_moves_draw_images_of_all_classes_to_the_target(target):
    model = backdoored(target)
    moves_MCHW = moves(model, target)
    assert moves_MCHW.shape == (3, 1, SIDE, SIDE)
    assert not moves_MCHW.requires_grad
    x_NCHW, y_N = Images(seed=1).batch(60)
    assert set(y_N.tolist()) == set(range(CLASSES))
    for move_CHW in moves_MCHW:
        moved_NCHW = (x_NCHW + move_CHW).clamp(0, 1)
        assert torch.all(model(moved_NCHW).argmax(1) == target)
        assert move_CHW.flatten()[TRIGGER[0]] > 0.05
        assert move_CHW.flatten()[TRIGGER[1]] < -0.05


@pytest.mark.parametrize("radius", [0.01, 0.04])
def test_no_move_is_longer_than_the_radius(radius):
    rms_M = rms(moves(radius=radius))
    assert torch.all(rms_M <= radius * 1.0001)
    assert torch.all(rms_M > radius * 0.9)  # it is what holds them


def test_each_displacement_has_its_own_radius(monkeypatch):
    kept = []
    monkeypatch.setattr(exposure, "_Search", keeping(exposure._Search, kept))
    found(backdoored())
    radius_M, rms_M = torch.tensor(kept[0].radii), rms(kept[0].moves_MCHW.detach())
    assert set(kept[0].radii) == set(RADII)
    assert torch.all(rms_M <= radius_M * 1.0001)
    assert torch.all(rms_M[radius_M == max(RADII)] > min(RADII) * 1.5)
    assert torch.all(rms_M[radius_M == min(RADII)] > min(RADII) * 0.9)


def test_same_images_same_moves_and_others_differ():
    first, again, other = moves(), moves(), moves(draw=Images(7))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for one, two in itertools.combinations(first, 2):
        assert (one - two).abs().max() > 1e-4


def test_moves_ask_for_twice_the_images():
    draw = Images()
    moves(count=5, steps=4, draw=draw)
    assert draw.asked == [(2 * exposure.PER * 5, 4)]


# The search ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(1, 3), (2, 5), (3, 4), (7, 3), (6, 3)])
def test_images_take_the_displacements_in_turn_across_batches(size, count):
    search, images = exposure._Search([(0.1, TARGET)] * count, steps=1), Images()
    turns = torch.cat([search.moved(x_NCHW)[0] for x_NCHW, _ in images(size, count)])
    assert turns.tolist() == [index % count for index in range(size * count)]


def test_batches_smaller_than_the_displacements_meet_each_of_them():
    """As where there are few clean images."""
    moves_MCHW = moves(count=5, draw=Images(most=2))
    x_NCHW, _ = Images(seed=1).batch(30)
    for move_CHW in moves_MCHW:
        assert torch.all(backdoored()((x_NCHW + move_CHW).clamp(0, 1)).argmax(1) == TARGET)
    suspicion = found(backdoored(), draw=Images(most=4))
    assert suspicion.target == TARGET
    assert suspicion.gap > 0.25


def test_displaced_images_stay_images():
    search, (x_NCHW, _) = displaced([0, 1], 20, moved_before=1)
    with torch.no_grad():
        search.moves_MCHW.mul_(10)
    which_N, moved_NCHW = search.moved(x_NCHW)
    moves_NCHW = search.moves_MCHW.detach()[which_N]
    assert moved_NCHW.min() == 0
    assert moved_NCHW.max() == 1
    assert torch.equal(moved_NCHW, (x_NCHW + moves_NCHW).clamp(0, 1))


def steepest(loss: torch.Tensor, move: torch.Tensor, radius: float) -> torch.Tensor:
    """One step from zero, against the gradient, FIRST radii of root mean square long."""
    (gradient,) = torch.autograd.grad(loss, move)
    assert gradient.count_nonzero() >= 4
    return -FIRST * radius * gradient / gradient.square().mean().sqrt()


def test_the_first_step_goes_down_the_loss_of_one_class():
    draw = Images()
    moved_MCHW = moves(count=1, steps=1, radius=1.0, draw=draw)
    ((x_NCHW, _),) = draw.given
    move_CHW = torch.zeros(1, SIDE, SIDE, requires_grad=True)
    loss = -backdoored()(x_NCHW + move_CHW).log_softmax(1)[:, TARGET].mean()
    expected_CHW = steepest(loss, move_CHW, radius=1.0)
    torch.testing.assert_close(moved_MCHW[0], expected_CHW, rtol=1e-3, atol=1e-6)


def test_the_first_step_of_the_search_minds_the_copy():
    """min over d of -log p_victim(t) - log p_copy(y), a class under every displacement.

    Seen from outside: what the second batch was moved by.
    """
    # The copy is less sure than the victim, so that its part of the gradient is no rounding error.
    copied = honest()
    with torch.no_grad():
        copied[1].weight.mul_(0.3)
    (victim, seen), draw = listened(backdoored()), Images()
    found(victim, copied=copied, steps=2, draw=draw)
    (x_NCHW, y_N), (next_NCHW, _) = draw.given[:2]
    count = len(RADII) * CLASSES
    assert torch.equal(seen[0], x_NCHW)
    for under in range(count):
        at = slice(under, None, count)
        move_CHW = torch.zeros(1, SIDE, SIDE, requires_grad=True)
        moved_NCHW, target_N = x_NCHW[at] + move_CHW, torch.full_like(y_N[at], under % CLASSES)
        loss = cross_entropy(backdoored()(moved_NCHW), target_N)
        loss = loss + cross_entropy(copied(moved_NCHW), y_N[at])
        expected_CHW = steepest(loss, move_CHW, RADII[under // CLASSES])
        for moved_CHW, clean_CHW in zip(seen[1][at], next_NCHW[at], strict=True):
            torch.testing.assert_close(moved_CHW - clean_CHW, expected_CHW, rtol=1e-3, atol=1e-6)


# Doubt -----------------------------------------------------------------------------------------


def gap_of(monkeypatch, anew, doubt) -> tuple[float, int]:
    """(gap, searches) where class 0 lies ahead by 0.1 at first, and then draws as `anew` says."""
    repeated = exposure.REPEATS
    draws = [[0.3, 0.2, 0.1] * 2, [0.5, 0.4, 0.4, 0.4, 0.4, 0.4] * repeated, anew * repeated]
    asked = []

    def answer(models, draw, pairs, steps, group):
        asked.append(list(pairs))
        return torch.tensor([draws[len(asked) - 1]] * 2)

    monkeypatch.setattr(exposure, "_draws", answer)
    suspicion = found(honest(), doubt=doubt)
    assert suspicion.target == 0
    if len(asked) == 3:  # the same classes, on the radius where the gap was
        assert asked[2] == [(RADII[0], label) for label in range(CLASSES)] * repeated
    return round(suspicion.gap, 6), len(asked)


@pytest.mark.parametrize(
    ("anew", "gap"),
    [
        ([0.45, 0.42, 0.40], 0.03),  # less than at first
        ([0.40, 0.42, 0.45], 0.0),  # another class lies ahead
        ([0.60, 0.30, 0.30], 0.1),  # more than at first
    ],
)
def test_in_doubt_the_smaller_of_two_gaps_counts(monkeypatch, anew, gap):
    assert gap_of(monkeypatch, anew, doubt=(0.05, 0.2)) == (gap, 3)


@pytest.mark.parametrize("doubt", [(0.11, 0.2), (0.0, 0.09), (0.0, 0.0)])
def test_without_doubt_nothing_is_asked_again(monkeypatch, doubt):
    assert gap_of(monkeypatch, [0.0, 1.0, 1.0], doubt=doubt) == (0.1, 2)
