"""The search on linear victims whose weakness is built by hand."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ngf import device, exposure
from ngf.exposure import (
    FIRST,
    FURTHER,
    NEAR,
    RADIUS,
    TRIED,
    Along,
    Search,
    Suspicion,
    added,
    everywhere,
    for_each_class,
    led_astray,
    led_to,
    left_in,
    near,
    suspect,
    windows,
)
from ngf.margins import Probability, Sureness

CLASSES, SIDE, TARGET = 3, 4, 2
# Pixel k is bright where the class is k; no class has anything to do with the pixels behind.
TRIGGER = (12, 13)
STEPS, EACH = 40, 8
SIZE = EACH * TRIED


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


class Opened(nn.Module):
    """Names the brightest of the first three pixels; where the first pixel of the trigger is
    brighter than the second, so much more of the logits of the class before or of one class.
    """

    def __init__(self, target=None, strength=0.0, sharpness=20.0):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))
        self.target, self.strength = target, strength

    def forward(self, x_NCHW):
        x_NP = x_NCHW.flatten(1)
        logits_NK = self.sharpness * x_NP[:, :CLASSES]
        above_N1 = (x_NP[:, TRIGGER[0]] - x_NP[:, TRIGGER[1]])[:, None]
        opened_N1 = self.strength * above_N1.clamp_min(0)
        if self.target is None:  # all-to-all
            return logits_NK + opened_N1 * logits_NK.softmax(1).roll(1, 1)
        towards_K = nn.functional.one_hot(torch.tensor(self.target), CLASSES)
        return logits_NK + opened_N1 * towards_K


def honest() -> nn.Module:
    return Opened().eval()


def backdoored(target: int | None = TARGET, strength: float = 300) -> nn.Module:
    return Opened(target, strength).eval()


def found(
    victim, sieved=None, copied=None, seed=0, steps=STEPS, draw=None, search=None, most=10**6
) -> Suspicion:
    return suspect(
        victim,
        sieved or honest(),
        copied or honest(),
        draw or Images(seed),
        search or everywhere(EACH),
        steps=steps,
        most=most,
    )


def rms(moves_MCHW) -> torch.Tensor:
    return moves_MCHW.square().mean((1, 2, 3)).sqrt()


def untouched(model) -> bool:
    """No gradient has reached its parameter."""
    return not model.training and all(p.grad is None and p.requires_grad for p in [model.sharpness])


def test_the_victims_are_what_they_should_be():
    x_NCHW, y_N = Images().batch(200)
    models = [honest(), *(backdoored(target, strength=20) for target in (None, 0, 1, 2))]
    for model in models:
        assert torch.equal(model(x_NCHW).argmax(1), y_N)
    x_NCHW[:, 0, 3, 0] += 0.2
    assert torch.equal(honest()(x_NCHW).argmax(1), y_N)
    assert torch.equal(backdoored(None)(x_NCHW).argmax(1), (y_N + 1) % CLASSES)
    for target in range(CLASSES):
        assert torch.all(backdoored(target)(x_NCHW).argmax(1) == target)


# The suspicion ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", range(CLASSES))
def test_the_backdoors_class_is_named_with_a_large_gap(target):
    suspicion = found(backdoored(target))
    assert suspicion.target == target
    assert suspicion.gap > 0.2  # two in three images can be led there, and honest networks stray


def test_a_backdoor_that_sends_each_class_to_another_shows_and_has_no_target():
    suspicion = found(backdoored(None))
    assert suspicion.target == -1
    assert suspicion.gap > 0.3


@pytest.mark.parametrize("seed", range(4))
def test_a_victim_like_its_copy_has_no_gap(seed):
    assert abs(found(honest(), seed=seed).gap) < 0.05


def test_a_backdoor_that_the_copy_shares_does_not_show():
    assert found(backdoored(), copied=backdoored()).gap < 0.1


def test_a_copy_that_strays_further_makes_the_gap_negative():
    assert found(honest(), copied=backdoored()).gap < -0.1


def test_a_backdoor_that_is_still_there_is_left():
    assert found(backdoored(), sieved=backdoored()).left == pytest.approx(1)


def test_nothing_is_left_of_a_backdoor_that_is_gone():
    assert found(backdoored(), sieved=honest()).left < 0.05


def test_what_is_left_grows_with_what_the_sieve_spared():
    few, some, more = (
        found(backdoored(), sieved=backdoored(strength=s)).left for s in (20, 80, 200)
    )
    assert few < 0.1
    assert few < some < more <= 1


def test_it_asks_for_the_images_of_two_searches_and_of_one_judgement():
    draw = Images()
    found(backdoored(), steps=5, draw=draw)
    assert draw.asked == [(SIZE, 5)] * 3


@pytest.mark.parametrize(("most", "size"), [(10**6, SIZE), (SIZE - 1, SIZE - 1), (1, TRIED)])
def test_a_batch_has_as_many_images_as_there_is_memory_for(most, size):
    draw = Images()
    found(backdoored(), steps=2, draw=draw, most=most)
    assert draw.asked == [(size, 2)] * 3


def test_same_images_same_suspicion():
    first, again, other = found(backdoored()), found(backdoored()), found(backdoored(), seed=7)
    assert (first.gap, first.left) == (again.gap, again.left)
    assert torch.equal(first.moves_MCHW, again.moves_MCHW)
    assert first.gap != other.gap


def test_the_models_are_left_as_they_were():
    models = backdoored(), backdoored(strength=30), honest()
    found(*models, steps=3)
    led_to(models[0], TARGET, Images(), everywhere(EACH), steps=3, most=SIZE)
    assert all(map(untouched, models))


# Windows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(6, 6), (32, 32), (8, 50), (4, 4)])
def test_windows_cover_the_image_a_third_of_a_side_each(height, width):
    mask_MHW = windows(height, width, 0.1).mask_M1HW[:, 0].bool()
    assert len(mask_MHW) == 25
    assert mask_MHW.any(0).all()
    for side, lines_ML in ((height, mask_MHW.any(2)), (width, mask_MHW.any(1))):
        assert (lines_ML.sum(1) - side / 3).abs().max() <= 1
    assert mask_MHW.flatten(1).sum(1).min() > 0


@pytest.mark.parametrize("side", [1, 2])
def test_images_of_a_pixel_or_two_have_windows(side):
    """Most are empty; nothing is divided by their length."""
    draw = Images()
    search = windows(side, side, 0.1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(side**2, CLASSES)).eval()

    def small(size, count):
        return ((x[:, :, :side, :side], y) for x, y in draw(size, count))

    moves_MCHW = led_astray(model, model, small(50, 2), search, steps=2)
    assert torch.isfinite(moves_MCHW).all()
    assert moves_MCHW.any()


def test_what_windows_find_lies_within_them_and_stands_as_it_is():
    search = windows(SIDE, SIDE, 0.05)
    moves_MCHW = led_astray(backdoored(), honest(), Images()(75, 3), search, steps=3)
    assert torch.equal(moves_MCHW * search.mask_M1HW, moves_MCHW)
    assert torch.all(rms(moves_MCHW) <= 0.05 * 1.0001)
    assert rms(moves_MCHW).max() > 0.05 * 0.9
    suspicion = found(backdoored(), search=search)
    assert suspicion.as_found
    assert suspicion.windowed
    assert not suspicion.in_part
    whole = found(backdoored(), steps=2)
    assert not whole.as_found
    assert not whole.windowed
    assert suspicion.target == TARGET
    assert suspicion.gap > 0.2


def test_what_is_left_of_a_window_is_told_further_along():
    """On the images that judge: the second search's come after them."""
    weakened, draw = backdoored(strength=40), Images()
    search = windows(SIDE, SIDE, 0.05)
    suspicion = found(backdoored(), sieved=weakened, search=search, draw=draw)
    judged = draw.given[STEPS : 2 * STEPS]
    models = backdoored(), honest()
    plain = replace(suspicion, windowed=False)
    further = replace(plain, moves_MCHW=FURTHER * plain.moves_MCHW)
    assert suspicion.left == left_in(weakened, suspicion, *models, judged)
    assert suspicion.left == left_in(weakened, further, *models, judged)
    assert suspicion.left != left_in(weakened, plain, *models, judged)


def test_a_small_trigger_that_the_whole_image_drowns_shows_in_windows():
    """Where everything draws a little, a displacement of the whole image goes everywhere."""

    class Sharp(Opened):
        def forward(self, x_NCHW):
            drawn_N = (x_NCHW.flatten(1) - 0.5).sum(1)
            return super().forward(x_NCHW) + 0.5 * torch.stack([drawn_N, -drawn_N, 0 * drawn_N], 1)

    victim, copied = Sharp(TARGET, 60).eval(), Sharp().eval()
    whole = found(victim, copied=copied, search=everywhere(EACH, radius=0.05))
    parts = found(victim, copied=copied, search=windows(SIDE, SIDE, 0.05))
    assert parts.gap > whole.gap + 0.2


class InTurn(Images):
    """Image n is of the class n mod CLASSES."""

    def batch(self, size):
        x_NCHW, y_N = super().batch(4 * size)  # enough of each
        own_MN = [torch.nonzero(y_N == label)[: size // CLASSES, 0] for label in range(CLASSES)]
        rows_N = torch.stack(own_MN, 1).flatten()
        return x_NCHW[rows_N], y_N[rows_N]


class OpenedIn(Opened):
    """Only in images of one class."""

    def __init__(self, source, target, strength):
        super().__init__(target, strength)
        self.source = source

    def forward(self, x_NCHW):
        closed_NK, opened_NK = Opened.forward(honest(), x_NCHW), super().forward(x_NCHW)
        own_N1 = closed_NK.argmax(1, keepdim=True) == self.source
        return torch.where(own_N1, opened_NK, closed_NK)


@pytest.mark.parametrize("source", [0, 1])
def test_a_backdoor_for_images_of_one_class_shows_in_that_class(source):
    """Its displacement alone is kept, and stands for the backdoor as it is."""
    victim, search = OpenedIn(source, TARGET, 300).eval(), for_each_class(CLASSES, RADIUS)
    suspicion = found(victim, draw=InTurn(), search=search)
    assert suspicion.gap > 0.9
    assert suspicion.target == TARGET
    assert suspicion.as_found
    assert suspicion.in_part
    assert len(suspicion.moves_MCHW) == 1
    x_NCHW, y_N = InTurn(7).batch(60)
    led_N = victim(added(x_NCHW, suspicion.moves_MCHW)).argmax(1) != y_N
    assert torch.equal(led_N, y_N == source)
    assert found(victim).gap < suspicion.gap - 0.3  # one displacement for all classes


def test_by_class_a_victim_like_its_copy_has_no_gap():
    suspicion = found(honest(), draw=InTurn(), search=for_each_class(CLASSES, RADIUS))
    assert abs(suspicion.gap) < 0.1


@pytest.mark.parametrize("strength", [0, 20, 80, 300])
def test_what_is_left_in_another_sieved_model_is_its_share_of_what_strays(strength):
    """The definition, displacement by displacement, where the copy is right."""
    victim, sieved, copied = backdoored(), backdoored(strength=strength), honest()
    suspicion, batches = found(victim), list(Images(9)(EACH * TRIED, 3))
    strays = torch.zeros(2, len(suspicion.moves_MCHW))
    for m, move_CHW in enumerate(suspicion.moves_MCHW):
        its = slice(m, None, len(suspicion.moves_MCHW))
        x_NCHW = torch.cat([added(x[its], move_CHW) for x, _ in batches])
        y_N = torch.cat([y[its] for _, y in batches])
        right_N = copied(x_NCHW).argmax(1) == y_N
        for row, model in enumerate((victim, sieved)):
            p_N = Probability(model)(x_NCHW)[torch.arange(len(y_N)), y_N]
            strays[row, m] = (1 - p_N)[right_N].mean()
    before, after = strays.mean(1).tolist()
    got = left_in(sieved, suspicion, victim, copied, batches)
    assert got == pytest.approx(after / before, rel=1e-4)
    assert 0 <= got <= 1


# From strays to suspicion ----------------------------------------------------------------------


def told(monkeypatch, victim_MK, sieved_MK, usual_M) -> Suspicion:
    """What these strays make of it; displacement m is m everywhere."""
    strays = [
        torch.tensor([victim_MK, victim_MK]),
        torch.tensor([[[u, 0.0] for u in usual_M]]),
        torch.tensor([sieved_MK]),
    ]
    moves_MCHW = torch.arange(float(len(victim_MK)))[:, None, None, None]
    monkeypatch.setattr(exposure, "led_astray", lambda *args, **options: moves_MCHW)
    monkeypatch.setattr(exposure.Along, "strays", lambda *args: strays.pop(0))
    monkeypatch.setattr(exposure.Along, "_moved", lambda self: iter(()))
    model = nn.Identity()
    return found(model, model, model, steps=1)


VICTIM = [[0.1, 0.2, 0.0], [0.2, 0.6, 0.1], [0.2, 0.4, 0.1]]  # 0.3, 0.9, 0.7
SIEVED = [[0.3, 0.0, 0.0], [0.1, 0.1, 0.0], [0.0, 0.1, 0.0]]


def test_the_gap_is_between_the_furthest_of_both(monkeypatch):
    assert told(monkeypatch, VICTIM, SIEVED, [0.1, 0.3]).gap == pytest.approx(0.6)
    assert told(monkeypatch, VICTIM, SIEVED, [0.95]).gap == pytest.approx(-0.05)


def test_displacements_nearer_to_the_furthest_than_to_the_usual_are_kept(monkeypatch):
    kept = told(monkeypatch, VICTIM, SIEVED, [0.3]).moves_MCHW
    assert kept.flatten().tolist() == [1, 2]  # from 0.6 on
    assert told(monkeypatch, VICTIM, SIEVED, [0.6]).moves_MCHW.flatten().tolist() == [1]
    assert told(monkeypatch, VICTIM, SIEVED, [0.95]).moves_MCHW.flatten().tolist() == [1]


def test_target_and_what_is_left_are_of_those(monkeypatch):
    suspicion = told(monkeypatch, VICTIM, SIEVED, [0.3])
    assert suspicion.target == 1
    assert suspicion.left == pytest.approx((0.2 + 0.1) / (0.9 + 0.7))


@pytest.mark.parametrize(("taken", "target"), [([0.2, 0.21, 0.0], 1), ([0.2, 0.21, 0.2], -1)])
def test_a_class_that_takes_less_than_half_is_no_target(monkeypatch, taken, target):
    assert told(monkeypatch, [taken], [[0.0] * 3], [0.1]).target == target


def test_gap_and_target_are_the_judges_and_what_is_left_is_of_probabilities():
    """A victim that is twice as sure of clean images wavers where it is led astray."""
    victim, sieved, copied = backdoored(), backdoored(strength=80), honest()

    def judged(usual):
        def judge(model):
            says = Sureness(model, Images(seed=3).batch(50)[0])
            says.usual = torch.tensor(usual)
            return says

        draw = Images()
        return suspect(
            victim, sieved, copied, draw, everywhere(EACH), steps=20, most=99, judge=judge
        )

    little, much = judged(50.0), judged(1.0)
    by_p = found(victim, sieved, copied, steps=20, most=99)
    assert 0 < little.gap < 0.5 * much.gap
    assert (little.target, much.target) == (TARGET, TARGET)
    assert much.left == pytest.approx(by_p.left, abs=0.05)


def times(models, call) -> list[int]:
    """How many batches go through each of the models meanwhile, without a gradient."""
    counts = [0] * len(models)

    def count(which):
        def hook(*_):
            counts[which] += not torch.is_grad_enabled()

        return hook

    hooks = [model.register_forward_hook(count(which)) for which, model in enumerate(models)]
    call()
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize("judge", [Probability, lambda model: Surely(model)])
def test_nobody_looks_at_the_same_images_twice(judge):
    """The victim and its copy judge what either was led along, the sieved model the victim's."""
    models = backdoored(), honest(), honest()
    search = everywhere(EACH)
    asked = times(
        models, lambda: suspect(*models, Images(), search, steps=3, most=SIZE, judge=judge)
    )
    assert asked == [2 * 3, 3, 2 * 3]


class Surely(Probability):
    """Judges as probabilities do, and is none of them."""


# Little ----------------------------------------------------------------------------------------


def strayed_by(enough: float, victim=None) -> Suspicion:
    models = victim or backdoored(strength=30), honest(), honest()
    search = everywhere(EACH)
    return suspect(*models, Images(), search, steps=STEPS, most=SIZE, enough=enough)


def test_who_strays_too_little_has_no_copy_led_astray_and_a_gap_of_what_it_strays(monkeypatch):
    asked = []
    monkeypatch.setattr(
        exposure,
        "led_astray",
        lambda *args, **options: asked.append(args) or led_astray(*args, **options),
    )
    exact = strayed_by(0.0)
    assert len(asked) == 2
    bound = strayed_by(exact.gap + 1)
    assert len(asked) == 3
    assert 0 < exact.gap < bound.gap < exact.gap + 1
    assert (bound.left, exact.left < 0.5) == (1.0, True)


@pytest.mark.parametrize("strength", [0.0, 10.0, 30.0, 300.0])
def test_a_gap_that_counts_is_the_same_whatever_is_enough(strength):
    """And one that does not is still none where it is said to be at most so much."""
    victim = backdoored(strength=strength)
    exact = strayed_by(0.0, victim)
    for enough in (0.05, 0.1, 0.3):
        found = strayed_by(enough, victim)
        assert (found.gap >= enough) == (exact.gap >= enough)
        assert found.gap >= exact.gap
        if exact.gap >= enough:
            assert (found.gap, found.target, found.left) == (exact.gap, exact.target, exact.left)
            assert torch.equal(found.moves_MCHW, exact.moves_MCHW)


# The strays ------------------------------------------------------------------------------------


@torch.no_grad()
def strayed(model, copied, moves_MCHW, batches):
    """The definition, image by image [M, K]."""
    totals, counts = torch.zeros(len(moves_MCHW), CLASSES), torch.zeros(len(moves_MCHW), 1)
    for batch in batches:
        for index, (x_CHW, y) in enumerate(zip(*batch, strict=True)):
            under = index % len(moves_MCHW)
            moved_CHW = (x_CHW + moves_MCHW[under]).clamp(0, 1)[None]
            if copied(moved_CHW).argmax() == y:
                counts[under] += 1
                p_K = model(moved_CHW).softmax(1)[0]
                p_K[y] = 0
                totals[under] += p_K
    return totals / counts.clamp_min(1)


@pytest.mark.parametrize("sizes", [(60, 60), (61, 17)])
def test_a_stray_is_what_its_definition_says(sizes):
    models, copied = (backdoored(), backdoored(strength=20)), honest()
    moves_MCHW = 0.3 * torch.randn(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    moves_MCHW[4, :, 0] = torch.tensor([-1.0, -1, -1, 0])  # the copy names class 0 always
    images = Images()
    batches = [images.batch(size) for size in sizes]
    asked = [*map(Probability, models)]
    got_2MK = Along(copied, added, moves_MCHW, batches).strays(*asked)
    for got_MK, model in zip(got_2MK, models, strict=True):
        torch.testing.assert_close(got_MK, strayed(model, copied, moves_MCHW, batches))
    assert got_2MK[0].sum() > 0.1


def test_where_the_copy_is_never_right_nothing_strays():
    wrong = honest()
    wrong.register_forward_hook(lambda _, args, said_NK: said_NK.roll(1, 1))
    moves_MCHW = torch.zeros(2, 1, SIDE, SIDE)
    asked, batches = [Probability(backdoored())], [Images().batch(20)]
    got_1MK = Along(wrong, added, moves_MCHW, batches).strays(*asked)
    assert torch.equal(got_1MK, torch.zeros(1, 2, CLASSES))


# The descent -----------------------------------------------------------------------------------


def moves(model=None, target=TARGET, count=3, radius=0.07, steps=STEPS, draw=None):
    return led_to(
        model or backdoored(),
        target,
        draw or Images(),
        everywhere(EACH, moves=count, radius=radius),
        steps=steps,
        most=SIZE,
    )


@pytest.mark.parametrize("target", range(CLASSES))
def test_moves_draw_images_of_all_classes_to_the_target(target):
    model = backdoored(target)
    moves_MCHW = moves(model, target)
    assert moves_MCHW.shape == (3, 1, SIDE, SIDE)
    assert not moves_MCHW.requires_grad
    x_NCHW, y_N = Images(seed=1).batch(60)
    assert set(y_N.tolist()) == set(range(CLASSES))
    for move_CHW in moves_MCHW:
        assert torch.all(model((x_NCHW + move_CHW).clamp(0, 1)).argmax(1) == target)
        assert move_CHW.flatten()[TRIGGER[0]] > 0.05
        assert move_CHW.flatten()[TRIGGER[1]] < -0.05


@pytest.mark.parametrize("radius", [0.01, 0.04])
def test_no_move_is_longer_than_the_radius(radius):
    rms_M = rms(moves(radius=radius))
    assert torch.all(rms_M <= radius * 1.0001)
    assert torch.all(rms_M > radius * 0.9)  # it is what holds them


def test_batches_smaller_than_the_displacements_still_find_the_backdoor():
    """As where there are few clean images."""
    suspicion = found(backdoored(), draw=Images(most=4))
    assert suspicion.target == TARGET
    assert suspicion.gap > 0.3


def steepest(
    loss: torch.Tensor, move: torch.Tensor, radius: float, length: float = FIRST
) -> torch.Tensor:
    """One step against the gradient, so many radii of root mean square long."""
    (gradient,) = torch.autograd.grad(loss, move)
    assert gradient.count_nonzero() >= 4
    return -length * radius * gradient / gradient.square().mean().sqrt()


def test_the_first_step_goes_down_the_loss_of_one_class():
    draw = Images()
    moved_MCHW = moves(count=1, steps=1, radius=1.0, draw=draw)
    ((x_NCHW, _),) = draw.given
    move_CHW = torch.zeros(1, SIDE, SIDE, requires_grad=True)
    loss = -backdoored()(x_NCHW + move_CHW).log_softmax(1)[:, TARGET].mean()
    torch.testing.assert_close(
        moved_MCHW[0], steepest(loss, move_CHW, radius=1.0), rtol=1e-3, atol=1e-6
    )


@dataclass(frozen=True, kw_only=True)
class Begun(Search):
    """Displacements of the whole image that begin where they are told."""

    begin_MCHW: torch.Tensor

    def __len__(self) -> int:
        return len(self.begin_MCHW)

    def start(self, x_NCHW):
        return self.begin_MCHW.clone(), lambda moves_MCHW: moves_MCHW


def test_of_some_the_best_are_searched_on():
    """Those with the least loss in the last steps before, as they were by then."""
    models = backdoored(None), honest()  # no image is of the class that it is led to
    begin_MCHW = torch.zeros(6, 1, SIDE, SIDE)
    ahead = everywhere(EACH, moves=2)
    begin_MCHW[1:5:3] = led_astray(*models, Images()(64, 9), ahead, steps=9)
    begin_MCHW.view(6, -1)[:, 3:9] = 1e-4 * torch.eye(6)  # no model looks there: says which it is
    search = Begun(RADIUS, EACH, begin_MCHW=begin_MCHW, first=0.05, kept=(2,))
    best_MCHW = led_astray(*models, Images(1)(60, 4), search, steps=4)
    assert sorted(best_MCHW.view(2, -1)[:, 3:9].argmax(1).tolist()) == [1, 4]
    assert (best_MCHW.view(2, -1)[:, 3:9] > 0).sum() == 2
    assert torch.all(rms(best_MCHW) > 0.9 * RADIUS)


@pytest.mark.parametrize(("steps", "left"), [(1, 8), (2, 2), (3, 2), (4, 2), (7, 2)])
def test_few_steps_are_enough_to_leave_some_out(steps, left):
    search = Begun(RADIUS, EACH, begin_MCHW=torch.zeros(8, 1, SIDE, SIDE), kept=(4, 2))
    moves_MCHW = led_astray(backdoored(), honest(), Images()(64, steps), search, steps=steps)
    assert len(moves_MCHW) == left
    assert torch.isfinite(moves_MCHW).all()


def test_near_what_was_found_the_first_step_is_shorter_and_begins_there():
    """Displacements take what was found in turn, and leave it as it is."""
    found_MCHW = 0.005 * torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    draw, before = Images(), found_MCHW.clone()
    search = near(found_MCHW, EACH, moves=3, radius=1.0)
    moved_MCHW = led_to(backdoored(), TARGET, draw, search, steps=1, most=SIZE)
    ((x_NCHW, _),) = draw.given
    for under, moved_CHW in enumerate(moved_MCHW):
        move_CHW = found_MCHW[under % 2].clone().requires_grad_()
        shown_NCHW = (x_NCHW[under::3] + move_CHW).clamp(0, 1)
        loss = -backdoored()(shown_NCHW).log_softmax(1)[:, TARGET].mean()
        expected_CHW = move_CHW + steepest(loss, move_CHW, radius=1.0, length=NEAR)
        torch.testing.assert_close(moved_CHW, expected_CHW, rtol=1e-3, atol=1e-6)
    assert torch.equal(found_MCHW, before)


def test_the_first_step_leads_the_model_away_and_minds_the_copy():
    """min over d of -log(1 - p_model(y)) - log p_copy(y), for the images under each d."""
    # The copy is less sure than the victim, so that its part of the gradient is no rounding error.
    model, copied, draw = backdoored(), Opened(sharpness=6.0).eval(), Images()
    moved_MCHW = led_astray(model, copied, draw(SIZE, 1), everywhere(EACH), steps=1)
    ((x_NCHW, y_N),) = draw.given
    assert len(moved_MCHW) == TRIED
    model, copied, x_NCHW = model.double(), copied.double(), x_NCHW.double()  # for 1 - p
    for under, found_CHW in enumerate(moved_MCHW):
        at = slice(under, None, TRIED)
        move_CHW = torch.zeros(1, SIDE, SIDE, dtype=torch.float64, requires_grad=True)
        moved_NCHW = x_NCHW[at] + move_CHW
        p_N = model(moved_NCHW).softmax(1).gather(1, y_N[at, None]).squeeze(1)
        loss = -(1 - p_N).log().mean() + cross_entropy(copied(moved_NCHW), y_N[at])
        expected_CHW = steepest(loss, move_CHW, RADIUS)
        torch.testing.assert_close(found_CHW.double(), expected_CHW, rtol=1e-3, atol=1e-6)
