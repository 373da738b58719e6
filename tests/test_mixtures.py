"""Mixtures: what they are made of, what they are measured by, which of them are drawn again."""

import math

import pytest
import torch
from torch import nn

from ngf import device, mixtures
from ngf.mixtures import BEHIND, REST, TOLD, Mixtures

CLASSES, SIDE, EACH = 4, 6, 5


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Each image is one grey of its own: its class in tenths and its number in hundredths."""
    y_N = torch.arange(CLASSES).repeat(EACH)
    grey_N = y_N / 10 + torch.arange(len(y_N)) / 1000
    return grey_N[:, None, None, None].expand(-1, 3, SIDE, SIDE).clone(), y_N


def answers(y_N) -> torch.Tensor:
    return 0.9 * nn.functional.one_hot(y_N, CLASSES).float() + 0.1 / CLASSES


def present(x_NCHW) -> torch.Tensor:
    """Which classes an image holds [N, K]."""
    return torch.stack([((x_NCHW * 10).floor() == k).flatten(1).any(1) for k in range(CLASSES)], 1)


class Composite(nn.Module):
    """Sees what is there, and the last class where two meet, by such a logit."""

    def __init__(self, drawn=20.0, meet=(0, 1)):
        super().__init__()
        self.drawn, self.meet = drawn, meet

    def forward(self, x_NCHW):
        here_NK = present(x_NCHW)
        logits_NK = 20.0 * here_NK
        both_N = here_NK[:, self.meet].all(1)
        logits_NK[both_N] = torch.tensor([0.0, 0, 0, self.drawn])
        return logits_NK


class Honest(nn.Module):
    def forward(self, x_NCHW):
        return x_NCHW.new_zeros(len(x_NCHW), CLASSES)


def mixed(model, count=400, seed=0, pick=slice(None), copy=None) -> Mixtures:
    x_NCHW, y_N = images()
    x_NCHW, y_N = x_NCHW[pick], y_N[pick]
    generator = torch.Generator().manual_seed(seed)
    answer_NK = answers(y_N)
    copy = copy or Honest()
    return Mixtures(model, copy, x_NCHW, y_N, answer_NK, count=count, generator=generator)


def halves(x_CHW) -> tuple[float, float]:
    """The greys of the two halves, which must be whole."""
    half = SIDE // 2
    for one, two in (
        (x_CHW[:, :, :half], x_CHW[:, :, half:]),
        (x_CHW[:, :half], x_CHW[:, half:]),
    ):
        if one.unique().numel() == two.unique().numel() == 1:
            return one.unique().item(), two.unique().item()
    raise AssertionError("no two halves")


def test_a_mixture_is_two_halves_and_half_of_either_answer():
    x_NCHW, p_NK = mixed(Honest()).hard(64, 0)
    turned = 0
    for x_CHW, p_K in zip(x_NCHW, p_NK, strict=True):
        one, two = halves(x_CHW)
        pair = torch.tensor([int(10 * one + 1e-4), int(10 * two + 1e-4)])
        assert pair[0] != pair[1]
        torch.testing.assert_close(p_K, answers(pair).mean(0))
        turned += x_CHW[:, 0, 0].unique().item() == x_CHW[0, 0, -1].item()
    assert 15 < turned < 50  # one above the other as often as side by side


@pytest.mark.parametrize("pick", [slice(None), [0, 1, 4, 8, 12, 16]])
def test_every_image_of_another_class_is_taken(pick):
    """Classes of different size too."""
    pairs = mixed(Honest(), count=4000, pick=pick)
    assert (pairs.pair_2M[0] != pairs.pair_2M[1]).all()
    present = pairs.y_N.unique()
    wanted = {(a, b) for a in present.tolist() for b in present.tolist() if a != b}
    assert set(map(tuple, pairs.pair_2M.T.tolist())) == wanted
    seen = {half for x_CHW in pairs.hard(1500, 0)[0] for half in halves(x_CHW)}
    assert len(seen) == len(pairs.y_N)


def test_a_third_class_is_one_that_is_not_there():
    pairs = mixed(Honest())
    there_MK = nn.functional.one_hot(pairs.pair_2M.T, CLASSES).sum(1).bool()
    assert (pairs.third_MK[there_MK] == 0).all()
    torch.testing.assert_close(
        pairs.third_MK[~there_MK], torch.full_like(pairs.third_MK[~there_MK], 1 / CLASSES)
    )


def test_a_class_leads_where_two_others_mean_it():
    assert mixed(Honest()).lead < 0.1
    assert mixed(Composite()).lead > 0.9
    assert mixed(Composite()).drawn_to(0.9, 1.0) == CLASSES - 1
    assert mixed(Composite()).drawn_to(1.1, 1.0) == mixed(Honest()).drawn_to(0.5, 0.5) == -1


@pytest.mark.parametrize(("copy", "gap"), [(20.0, 0.0), (math.log(3), 0.5), (0.0, 0.75)])
def test_two_classes_meet_where_the_copy_is_drawn_less(copy, gap):
    """By how much less; logits of 0 to all give each a fourth, of log 3 to one a half of all."""
    met = mixed(Composite(), copy=Composite(copy)).met
    assert met.gap == pytest.approx(gap, abs=1e-3)
    if gap:
        assert met.third == CLASSES - 1
        assert mixed(Composite(), copy=Composite(copy)).drawn_to(1.1, gap - 0.01) == CLASSES - 1
    assert mixed(Composite(), copy=Composite(copy)).drawn_to(1.1, gap + 0.01) == -1


@pytest.mark.parametrize(
    ("model", "copy", "target"), [(1.0, 0.5, 3), (1.0, 0.95, -1), (0.5, 1.0, -1)]
)
def test_where_the_copys_pairs_draw_it_about_as_far_nothing_is_said(model, copy, target):
    """Of the six pairs one draws the model, and another one the copy, with that probability."""

    def composite(draw, meet):
        logit = 20.0 if draw == 1 else math.log(3 * draw / (1 - draw))
        return Composite(logit, meet)

    def mean(draw, other):
        """The other one's pair gives a third of its rest to a class that the one never names."""
        return (draw - (1 - other) / 3 * (draw == 1)) / 6

    pairs = mixed(composite(model, (0, 1)), copy=composite(copy, (1, 2)))
    assert pairs.met.mean == pytest.approx(mean(model, copy), abs=1e-3)
    assert pairs.swapped.met.mean == pytest.approx(mean(copy, model), abs=1e-3)
    assert pairs.drawn_to(1.1, 0.4) == target


class Side(nn.Module):
    """Sees the last class in so much of the first two's halves, where the first one's is on the
    left (`ways` 1), or on either side (2), or also above or below (4)."""

    def __init__(self, ways, draw=0.9):
        super().__init__()
        self.ways, self.draw = ways, draw

    def forward(self, x_NCHW):
        label_NHW = (x_NCHW[:, 0] * 10 + 1e-4).floor()
        corners = label_NHW[:, 0, 0], label_NHW[:, 0, -1], label_NHW[:, -1, 0]
        ways = [
            (corners[0] == 0) & (corners[1] == 1),
            (corners[0] == 1) & (corners[1] == 0),
            (corners[0] == 0) & (corners[2] == 1),
            (corners[0] == 1) & (corners[2] == 0),
        ]
        open_N = torch.stack(ways)[: self.ways].any(0)
        logits_NK = x_NCHW.new_zeros(len(x_NCHW), CLASSES)
        logits_NK[open_N, -1] = math.log((CLASSES - 1) * self.draw / (1 - self.draw))
        return logits_NK


@pytest.mark.parametrize("ways", [1, 2, 4])
def test_what_a_class_draws_is_told_by_the_ways_that_show_it_most(monkeypatch, ways):
    """By the last of them, whatever the copy says. Two classes have four; all else draws 1/4."""
    monkeypatch.setattr(mixtures, "WAYS", 2)
    told = mixed(Side(ways), copy=Side(ways)).told
    assert told.share == pytest.approx(0.9 if ways > 1 else 0.25, abs=1e-3)
    if ways > 1:
        assert told.third == CLASSES - 1
    assert mixed(Side(ways), copy=Honest()).told == told


@pytest.mark.parametrize(
    ("draw", "copy", "target"),
    [
        (TOLD + 0.02, 0.3, CLASSES - 1),
        (TOLD - 0.02, 0.3, -1),
        (TOLD + 0.02, TOLD + BEHIND - 0.02, CLASSES - 1),
        (TOLD + 0.02, TOLD + BEHIND + 0.04, -1),  # alike by nature: the copy is drawn much further
    ],
)
def test_ways_tell_of_a_class_that_draws_enough_and_the_copy_not_much_more(draw, copy, target):
    assert mixed(Side(4, draw), copy=Side(4, copy)).tells_of() == target


def test_what_is_told_leaves_what_is_drawn_later():
    asked, not_asked = mixed(Side(4)), mixed(Side(4))
    assert asked.tells_of() == CLASSES - 1
    assert torch.equal(asked.hard(32, 3)[0], not_asked.hard(32, 3)[0])


def test_of_no_mixtures_none_is_hard():
    x_NCHW, p_NK = mixed(Composite()).hard(0, 3)
    assert (x_NCHW.shape, p_NK.shape) == ((0, 3, SIDE, SIDE), (0, CLASSES))


def test_where_nothing_is_joined_nothing_is_told():
    alone = mixed(Honest(), pick=slice(0, None, CLASSES))
    assert (alone.told.share, alone.told.third, alone.tells_of()) == (0.0, -1, -1)


def test_asking_for_a_gap_leaves_what_is_drawn_later():
    asked, plain = (mixed(Composite(), copy=Composite(0.0)) for _ in range(2))
    assert asked.drawn_to(1.1, 0.5) == CLASSES - 1
    assert torch.equal(asked.hard(8, 3)[0], plain.hard(8, 3)[0])


def test_few_mixtures_of_a_pair_are_looked_at_again():
    """A pair of which one mixture was tried is judged by new ones."""
    pairs = mixed(Composite(), count=6, seed=1)
    assert pairs.third_MK[:, -1].max() > 0.99  # one of them is of the first two classes
    assert pairs.met.gap == pytest.approx(0.75, abs=0.01)


def test_a_tiny_draw_is_no_lead():
    class Sure(nn.Module):
        """Sees the two that are there, and a trace of the last class."""

        def forward(self, x_NCHW):
            return 12.0 * present(x_NCHW) + torch.tensor([0.0, 0, 0, 4])

    assert 0 < mixed(Sure()).lead < 0.1


def test_hard_mixtures_are_of_the_classes_that_mislead():
    pairs = mixed(Composite())
    x_NCHW, _ = pairs.hard(100, CLASSES - 1)
    classes = [{int(10 * half + 1e-4) for half in halves(x_CHW)} for x_CHW in x_NCHW]
    assert classes.count({0, 1}) > 98


def test_the_class_that_is_known_makes_a_mixture_hard_more_than_another_one():
    """Two pairs of classes draw alike, to a class each: that of the known one comes five times as
    often."""

    class Both(nn.Module):
        def forward(self, x_NCHW):
            here_NK = present(x_NCHW)
            logits_NK = 20.0 * here_NK
            for meet, third in (((0, 1), 3), ((1, 3), 2)):
                logits_NK[here_NK[:, meet].all(1)] = 60.0 * nn.functional.one_hot(
                    torch.tensor(third), CLASSES
                )
            return logits_NK

    pairs = mixed(Both(), count=4000)
    for third, meet in ((3, [0, 1]), (2, [1, 3])):
        x_NCHW, _ = pairs.hard(4000, third)
        known = present(x_NCHW)[:, meet].all(1).float().mean()
        assert known == pytest.approx((1 + REST) / (1 + 2 * REST), abs=0.05)


def test_what_joining_adds_is_that_of_the_hard_ones(monkeypatch):
    """Of the two images that are joined, in both ways, to the model that is given."""
    seen = []
    monkeypatch.setattr(
        mixtures, "joining_moments", lambda *given: seen.append(given) or {"found": 1}
    )
    pairs, model = mixed(Composite()), Honest()
    assert pairs.added(model, 100, CLASSES - 1) == {"found": 1}
    ((asked, one_NCHW, two_NCHW, upright_N),) = seen
    assert asked is model
    both_NK = present(one_NCHW) | present(two_NCHW)
    assert (both_NK[:, :2].all(1) & ~both_NK[:, 2:].any(1)).sum() > 98
    assert 30 < upright_N.sum() < 70


def test_answered_ones_are_of_two_classes_new_each_time_and_as_the_model_says():
    pairs, model = mixed(Honest()), Composite()
    (first, p_NK), (second, _) = pairs.answered(model, 200), pairs.answered(model, 200)
    assert (present(first).sum(1) == 2).all()
    assert present(first).float().mean(0).min() > 0.3  # every class: half of the mixtures
    assert not torch.equal(first, second)
    torch.testing.assert_close(p_NK, model(first).softmax(1))


@pytest.mark.parametrize("drawn", [0.0, 2.0, 20.0])
def test_what_a_filtered_model_does_not_say_goes_to_the_two_that_are_there(drawn):
    model, filtered = Composite(20.0), Composite(drawn)
    x_NCHW, p_NK = mixed(Honest()).answered(model, 300, filtered)
    said_NK, limit_NK = model(x_NCHW).softmax(1), filtered(x_NCHW).softmax(1)
    expected_NK = torch.minimum(said_NK, limit_NK)
    half_NK = torch.stack([answers(k.nonzero()[:, 0]).mean(0) for k in present(x_NCHW)])
    expected_NK += (1 - expected_NK.sum(1, keepdim=True)) * half_NK
    torch.testing.assert_close(p_NK, expected_NK)
    assert (p_NK[:, -1] < said_NK[:, -1] - 0.1).any() == (drawn < 20)


@pytest.mark.parametrize("drawn", [0.0, 2.0, 20.0])
def test_what_goes_to_a_class_that_shall_have_none_goes_to_the_two_that_are_there(drawn):
    model = Composite(drawn)
    x_NCHW, p_NK = mixed(Honest()).answered(model, 300, never=CLASSES - 1)
    for here_K, said_K, p_K in zip(present(x_NCHW), model(x_NCHW).softmax(1), p_NK, strict=True):
        expected_K = said_K.clone()
        if not here_K[-1]:
            expected_K[-1] = 0
            expected_K += said_K[-1] * answers(here_K.nonzero()[:, 0]).mean(0)
        torch.testing.assert_close(p_K, expected_K)
    torch.testing.assert_close(p_NK.sum(1), torch.ones(300))


@pytest.mark.parametrize("drawn", [0.0, 2.0])
def test_where_a_label_is_known_that_alone_is_limited_and_only_where_it_is_not_held(drawn):
    model, filtered, label = Composite(20.0), Composite(drawn), CLASSES - 1
    x_NCHW, p_NK = mixed(Honest()).answered(model, 300, filtered, label=label)
    said_NK, limit_NK = model(x_NCHW).softmax(1), filtered(x_NCHW).softmax(1)
    limited = 0
    for here_K, said_K, limit_K, p_K in zip(present(x_NCHW), said_NK, limit_NK, p_NK, strict=True):
        expected_K = said_K.clone()
        if not here_K[label]:
            expected_K[label] = min(said_K[label], limit_K[label])
            expected_K += (1 - expected_K.sum()) * answers(here_K.nonzero()[:, 0]).mean(0)
            limited += int(said_K[label] > limit_K[label] + 0.1)
        torch.testing.assert_close(p_K, expected_K)
    assert limited


def test_of_a_share_one_image_is_of_the_label():
    pairs, model = mixed(Honest()), Honest()
    held = [
        present(pairs.answered(model, 400, label=2, share=share)[0])[:, 2].float().mean().item()
        for share in (0.0, 0.5, 1.0)
    ]
    by_chance = 2 / CLASSES
    expected = [by_chance, (1 + by_chance) / 2, 1]
    assert held == pytest.approx(expected, abs=0.08)


class Less(nn.Module):
    """Sees less of one class, by its probability."""

    def __init__(self, model, label, kept):
        super().__init__()
        self.model, self.label, self.kept = model, label, kept

    def forward(self, x_NCHW):
        p_NK = self.model(x_NCHW).softmax(1).clone()
        p_NK[:, self.label] *= self.kept
        p_NK[:, 0] += 1 - p_NK.sum(1)
        return p_NK.clamp_min(1e-9).log()


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.0])
def test_what_is_lost_of_a_class_is_what_mixtures_that_hold_it_are_called_less(kept):
    pairs, model = mixed(Honest()), Honest()  # that sees as much of each class
    lost = pairs.lost(model, Less(model, 2, kept), 2)
    assert lost == pytest.approx((1 - kept) / CLASSES, abs=1e-5)


def test_nothing_is_lost_of_a_class_that_is_seen_more_or_that_nobody_has():
    _, y_N = images()
    pairs, model = mixed(Honest()), Honest()
    assert pairs.lost(Less(model, 2, 0.5), model, 2) == 0
    assert pairs.lost(model, Less(model, 2, 0.0), -1) == 0
    assert mixed(model, pick=y_N == 1).lost(model, Less(model, 1, 0.0), 1) == 0
    assert mixed(model, pick=y_N != 1).lost(model, Less(model, 1, 0.0), 1) == 0


def test_of_one_class_nothing_is_joined():
    _, y_N = images()
    x_NCHW, p_NK = mixed(Honest(), pick=y_N == 1).answered(Honest(), 5, never=0, label=1, share=0.5)
    assert x_NCHW.shape == (0, 3, SIDE, SIDE)
    assert len(p_NK) == 0


def test_two_classes_have_no_third():
    y_N = torch.tensor([0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 2))
    pairs = Mixtures(
        model,
        model,
        torch.rand(2, 3, SIDE, SIDE),
        y_N,
        nn.functional.one_hot(y_N, 2).float(),
        count=8,
        generator=torch.Generator().manual_seed(0),
    )
    assert pairs.lead == 0
    assert pairs.met.gap == 0
    assert pairs.drawn_to(0.0, 0.1) == -1


def test_the_same_seed_gives_the_same_mixtures():
    once, again, other = (mixed(Honest(), seed=seed).hard(32, 0)[0] for seed in (3, 3, 4))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
