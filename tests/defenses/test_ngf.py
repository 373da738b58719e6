"""NGF's four moves: what they may change, what the last two make of the second, the notes."""

import contextlib
import copy

import pytest
import torch
from conftest import CLASSES, SIZE, colour_split, tiny_model
from torch import nn
from torch.nn.functional import normalize, one_hot

from ngf import device, models, params
from ngf.defenses import Clean, ngf
from ngf.errors import InputError
from ngf.exposure import RADIUS, TRIED, Suspicion, Within, for_each_class, windows
from ngf.fisher.moments import displacement_moments
from ngf.fisher.natural import Rule
from ngf.looks import PER
from ngf.margins import Probability, Sureness
from ngf.mixtures import Mixtures
from ngf.models import batch_norms, head, norm_layers
from ngf.sieve import STRENGTHS, Sieve, observe, sieve, sieve_against, sieve_against_within
from ngf.styles import EACH, LONGER, Styles, styled
from ngf.training import Batches
from ngf.warps import Warps, bent

N, BATCH, SHIFT = 48, 16, 1
NEVER = 1e9  # a budget that all strengths keep to
SHORT = {
    "moves": 2,
    "search": 3,
    "views": 1,
    "steps": 3,
    "batch_size": BATCH,
    "shift": SHIFT,
    "least_gap": -1.0,
    "mixed": 64,
    "mixed_lead": 1.0,
    "mixed_gap": 1.0,
    "answered": 0.0,
    "window": 0.0,
    "warps": 0.0,
    "waves": 0.0,
    "styles": 0.0,
    "classes": 0.0,
}
NO_SECOND = {"least_gap": 1.0}
SIEVE_ALONE = {"steps": 0, "search": 1, **NO_SECOND}
NO_SIEVE = {"weak": 0.0, "damp": 0.0, **NO_SECOND}
NOTHING_MOVED = {"share": 0.0}
MOVE = 0.05  # takes no pixel of `clean` beyond 1, not even at twice its length


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """As many views as the numbers say; the one test that asks for more sets its own."""
    monkeypatch.setattr(ngf, "LEAST", 1)


@pytest.fixture(autouse=True)
def deterministic():
    """As every stage asks for: of several threads, indexed sums differ from run to run else."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    yield
    torch.set_deterministic_debug_mode(before)


@pytest.fixture
def clean() -> Clean:
    split = colour_split(N, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), split.flip)


@pytest.fixture
def run(numbers, clean):
    """Purify a tiny model with few steps; `kind` is its norm."""

    def purify(kind="batch", model=None, **changes):
        options = params.options(ngf.purify, {**numbers["defenses"]["ngf"], **SHORT, **changes}, "")
        return ngf.purify(model or victim(kind), clean, **options)

    return purify


def victim(kind="batch"):
    if kind == "batch":
        return tiny_model()
    card = tiny_model().card
    card["options"] = {**card["options"], "norm": kind}
    torch.manual_seed(0)
    return models.build(card, [0.3] * 3, [0.2] * 3).eval()


def weights_of(model, kind) -> set[str]:
    return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, kind)}


def parameters_of(model, modules) -> set[str]:
    wanted = {id(p) for module in modules for p in module.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def changed(purified, kind="batch") -> set[str]:
    """Parameters and buffers that are not the victim's any more."""
    before, after = victim(kind).state_dict(), purified.model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def same(left, right) -> bool:
    left, right = left.state_dict(), right.state_dict()
    return all(torch.equal(left[key], right[key]) for key in left)


def equal(left, right) -> bool:
    return same(left.model, right.model)


# What changes ---------------------------------------------------------------------------------


def test_convolutions_norms_and_head_change(run):
    model, found = victim(), changed(run())
    statistics = {name for name, _ in model.named_buffers() if "running" in name}
    assert weights_of(model, nn.Conv2d) <= found
    assert parameters_of(model, [head(model)]) <= found
    assert found & parameters_of(model, batch_norms(model).values())
    assert found & statistics
    assert not found - parameters_of(model, model.modules()) - statistics


@pytest.mark.parametrize("damp", [0.0, 3.0])
def test_without_weak_no_convolution_changes(run, damp):
    found = changed(run(weak=0.0, damp=damp, **NO_SECOND))
    assert found
    assert not found & weights_of(victim(), nn.Conv2d)


def test_without_weak_and_damp_norm_statistics_do_not_change_either(run):
    model, found = victim(), changed(run(**NO_SIEVE))
    assert parameters_of(model, [head(model)]) <= found
    assert found <= parameters_of(model, [*batch_norms(model).values(), head(model)])


def test_without_sieve_and_steps_nothing_changes(run):
    assert not changed(run(**NO_SIEVE | SIEVE_ALONE))


def test_without_steps_the_model_is_sieved_alone(run):
    model, purified = victim(), run(**SIEVE_ALONE)
    found = changed(purified)
    assert weights_of(model, nn.Conv2d) <= found
    assert not found & parameters_of(model, [head(model)])
    assert purified.steps == 0


def test_tuning_leaves_the_norm_statistics_as_the_sieve_left_them(run):
    sieved, tuned = (dict(run(steps=steps).model.named_buffers()) for steps in (0, 3))
    assert all(torch.equal(sieved[name], tuned[name]) for name in sieved)
    assert not all(torch.equal(b, sieved[name]) for name, b in victim().named_buffers())


def test_the_copy_does_not_come_back(run):
    """A strong sieve is for the copy: where no class is suspected, its strength says nothing."""
    assert equal(*(run(strong=strong, **NO_SECOND) for strong in (0.1, 5.0)))
    assert not equal(*(run(weak=weak, **NO_SECOND) for weak in (0.1, 1.0)))


@pytest.mark.parametrize("weak", [0.0, 0.05])
def test_with_group_norm_the_head_and_sieved_convolutions_change(run, weak):
    model = victim("group")
    assert norm_layers(model)
    assert not batch_norms(model)
    purified = run("group", weak=weak, mixed_firm=0.0, **NO_SECOND)  # its mixtures tell of a class
    wanted = parameters_of(model, [head(model)])
    assert changed(purified, "group") == wanted | (weights_of(model, nn.Conv2d) if weak else set())
    assert torch.isfinite(purified.model(torch.rand(4, 3, SIZE, SIZE))).all()
    assert not purified.model.training


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_tuned_counts_batch_norms_and_head(run, kind):
    model = victim(kind)
    widths = [norm.num_features for norm in batch_norms(model).values()]
    linear = head(model)
    expected = 2 * sum(widths) + (linear.in_features + 1) * CLASSES
    purified = run(kind)
    assert purified.tuned == expected
    assert purified.steps == SHORT["steps"]


def test_the_given_model_is_tuned_and_nothing_else_hangs_on_it(run):
    """It is the one whose way may be recorded; the copies that were made are gone."""
    model = victim()
    purified = run(model=model)
    assert purified.model is model
    assert not purified.model.training


def test_a_victim_left_in_training_mode_makes_no_difference(run):
    assert equal(run(model=victim().train()), run())


def test_the_victim_answers_as_it_did_while_the_model_is_tuned(run, monkeypatch):
    """With trust 1 and unmoved images, what is asked for is what the fresh victim says, where that
    is right."""
    asked = []
    real = ngf.descend

    def descend(model, batches, *, show, **rest):
        def listening(batch):
            @contextlib.contextmanager
            def shown():
                with show(batch) as (x_NCHW, p_NK):
                    asked.append((x_NCHW.clone(), batch[1], p_NK.clone()))
                    yield x_NCHW, p_NK

            return shown()

        return real(model, batches, show=listening, **rest)

    monkeypatch.setattr(ngf, "descend", descend)
    purified = run(trust=1.0, **NOTHING_MOVED)
    assert not same(purified.model, victim())
    assert len(asked) == SHORT["steps"]
    for x_NCHW, y_N, p_NK in asked:
        assert torch.equal(p_NK, between(x_NCHW, y_N, 1.0))


# Seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("least_gap", [-1.0, 1.0])
def test_same_seed_same_bytes(run, least_gap):
    first, again = (run(least_gap=least_gap) for _ in range(2))
    assert equal(first, again)
    assert first.notes == again.notes
    assert not equal(first, run(least_gap=least_gap, seed=1))


# Sieve and search -----------------------------------------------------------------------------


@pytest.fixture
def suspected(monkeypatch):
    """Put a finding in the place of the searches; returns what they were given, as it was."""
    given: dict = {}

    def put(
        gap=1.0,
        left=1.0,
        target=1,
        in_windows=(0.0, 0),
        of_warps=(0.0, 0),
        of_styles=(0.0, 0),
        of_classes=(0.0, 0),
        in_the_end=None,
        then=None,
    ):
        given.update(looks=[], judges=[], bent=[], views=[], labels=[], lengths=[])

        def bend(x_NCHW, way_N2HW):
            given["bent"].append((x_NCHW, way_N2HW, bent(x_NCHW, way_N2HW)))
            return given["bent"][-1][-1]

        def suspect(fresh, sieved, strict, draw, search, **options):
            models = (fresh, sieved, strict)
            given["judges"].append(options.pop("judge"))
            given["enough"] = options.pop("enough")
            given.update(models=copy.deepcopy(models), batches=list(draw(7, 3)), **options)
            before = any(isinstance(one, Within) for one in given["looks"])
            given["looks"].append(search)
            given["lengths"].append(options["steps"])
            given["views"].append(torch.cat([x_NCHW for x_NCHW, _ in given["batches"]]))
            given["labels"].append([y_N.tolist() for _, y_N in given["batches"]])
            moves_MCHW = torch.full((3, 3, SIZE, SIZE), MOVE)
            if isinstance(search, Warps):
                way_M2HW = torch.full((3, 2, SIZE, SIZE), MOVE)
                return Suspicion(*of_warps, left, way_M2HW, bend, as_found=True, in_part=True)
            if isinstance(search, Styles):
                kernel_MCCS = torch.full((3, 9, 1, 1), MOVE)
                return Suspicion(*of_styles, left, kernel_MCCS, styled, as_found=True, in_part=True)
            if len(search) == CLASSES:
                return Suspicion(*of_classes, left, moves_MCHW, as_found=True, in_part=True)
            if before and in_the_end and len(search) == TRIED:
                return Suspicion(*in_the_end, left, moves_MCHW)
            if len(search) == TRIED:
                return Suspicion(gap, target, left, moves_MCHW)
            return Suspicion(*in_windows, left, moves_MCHW, as_found=True, windowed=True)

        def led_to(model, target, draw, search, **options):
            given.update(drawn=copy.deepcopy(model), target=target, wanted=search, moves=options)
            return torch.full((len(search), 3, SIZE, SIZE), MOVE)

        def left_in(sieved, found, fresh, strict, batches):
            given.update(again=copy.deepcopy((sieved, found, fresh, strict)), judged=list(batches))
            return left if then is None else then

        def narrowed(found, model, strict, draw, **options):
            given.update(narrowed=copy.deepcopy((found, model, strict)), limits=options)
            given["parted"] = torch.cat([x_NCHW for x_NCHW, _ in draw(7, 3)])
            return found.moves_MCHW

        monkeypatch.setattr("ngf.looks.suspect", suspect)
        monkeypatch.setattr("ngf.looks.left_in", left_in)
        monkeypatch.setattr("ngf.looks.led_to", led_to)
        monkeypatch.setattr("ngf.looks.narrowed", narrowed)
        return given

    return put


def first_images(clean, views):
    """`views` passes over the clean split, as the defense begins with them."""
    look = {"size": BATCH, "shift": SHIFT, "flip": clean.flip, "seed": 0}
    taken = list(Batches(clean.x_NHWC, clean.y_N, **look).take(views * N // BATCH))
    return torch.cat([x for x, _ in taken]), torch.cat([y for _, y in taken])


@torch.no_grad()
def answers(model, x_NCHW) -> torch.Tensor:
    return model(x_NCHW).softmax(1)


def between(x_NCHW, y_N, trust) -> torch.Tensor:
    """Of labels and the victim's answers, so much of the latter; of labels alone where it errs."""
    said_NK = answers(victim(), x_NCHW)
    right_N = said_NK.argmax(1) == y_N
    assert 0 < right_N.sum() < len(y_N)
    trust_N1 = trust * right_N[:, None]
    return (1 - trust_N1) * one_hot(y_N, CLASSES) + trust_N1 * said_NK


def observed(clean, views, trust=0.5, model=None):
    """The victim, or a model that was sieved, as it sees the images of the first sieve."""
    x_NCHW, y_N = first_images(clean, views)
    return observe(model or victim(), x_NCHW, between(x_NCHW, y_N, trust))


@pytest.fixture
def sights(monkeypatch):
    """What the first sieve was given: the model, images, and what is to be kept."""
    given: list = []

    def spy(*arguments):
        given.append(arguments)
        return observe(*arguments)

    monkeypatch.setattr(ngf, "observe", spy)
    return given


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("trust", [0.0, 0.4, 1.0])
def test_the_sieve_is_to_keep_what_lies_between_labels_and_the_victims(
    run, sights, clean, views, trust
):
    model = victim()
    run(model=model, views=views, trust=trust, **SIEVE_ALONE)
    x_NCHW, y_N = first_images(clean, views)
    ((observed_model, images_NCHW, target_NK),) = sights
    assert same(observed_model, victim())
    assert torch.equal(images_NCHW, x_NCHW)
    torch.testing.assert_close(target_NK, between(x_NCHW, y_N, trust))


@pytest.mark.parametrize(("least", "views"), [(N, 1), (N + 1, 2), (3 * N, 3)])
def test_few_clean_images_are_seen_more_often(run, monkeypatch, sights, clean, least, views):
    """In whole batches, of which N fills three."""
    monkeypatch.setattr(ngf, "LEAST", least)
    run(**SIEVE_ALONE)
    ((_, images_NCHW, _),) = sights
    assert len(images_NCHW) == -(-least // BATCH) * BATCH
    assert torch.equal(images_NCHW, first_images(clean, views)[0][: len(images_NCHW)])


@pytest.mark.parametrize("views", [1, 2])
def test_the_search_gets_the_victim_the_sieved_model_and_a_strict_copy(
    run, suspected, clean, views
):
    given, seen = suspected(), observed(clean, views)
    numbers = {"weak": 0.1, "damp": 1.0, "budget": 0.01}
    purified = run(**numbers, **NO_SECOND | {"least_gap": 1.5}, strong=0.6, views=views, steps=0)
    sieved, strength = Sieve(victim(), seen, weak=0.1, damp=1.0).within(0.01)
    strict = victim()
    sieve(strict, seen, weak=0.6, damp=1.0)
    for model, expected in zip(given["models"], (victim(), sieved, strict), strict=True):
        assert same(model, expected)
        assert not model.training
    assert same(purified.model, sieved)
    assert not same(sieved, strict)
    assert (purified.notes["strength"], purified.notes["evidence"]) == (strength, seen.evidence)


def test_the_searches_get_their_steps_and_numbers(run, suspected):
    given = suspected(left=0.4, target=2)
    run(moves=3, search=5, radius=0.02, least_gap=-0.5)
    assert given["enough"] == -0.5
    assert [len(y_N) for _, y_N in given["batches"]] == [7, 7, 7]
    (look,) = given["looks"]
    assert (look.radius, look.each) == (RADIUS, PER)
    assert (given["steps"], given["most"]) == (5, ngf.IN_A_STEP // SIZE**2)
    assert given["target"] == 2
    assert given["moves"] == {"steps": 5, "most": given["most"]}
    wanted = given["wanted"]
    assert (len(wanted), wanted.radius, wanted.each) == (3, 0.02, PER)
    assert torch.equal(wanted.begin_MCHW, torch.full((3, 3, SIZE, SIZE), MOVE))
    assert same(given["drawn"], given["again"][0])


def test_without_one_target_what_was_found_stands_for_the_backdoor(run, suspected, displays):
    given = suspected(target=-1)
    notes = run(reach=2.0, share=1.0, steps=12).notes
    assert notes["firmness"] > 0
    assert (notes["suspected"], notes["suspected_target"]) == (1, -1)
    assert "target" not in given
    check_moved(displays, 2.0, BATCH)


@pytest.fixture
def believed(monkeypatch):
    """The victim's answers are what is asked for: a sieve can be nearer to the labels than it is,
    and no nearer to those."""
    monkeypatch.setattr(ngf, "_answers", lambda model, batch, trust: answers(model, batch[0]))


@pytest.mark.parametrize(("budget", "strength"), [(0.0, min(STRENGTHS)), (NEVER, max(STRENGTHS))])
def test_the_budget_holds_the_model_and_not_the_copy(run, suspected, believed, budget, strength):
    given = suspected()
    assert run(budget=budget, steps=0).notes["strength"] == strength
    *_, strict = given["models"]
    run(budget=0.01, steps=0)
    assert same(strict, given["models"][2])


# What was suspected, and what is made of it ---------------------------------------------------


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_notes_say_what_was_found_and_done(run, kind):
    notes = run(kind).notes
    names = "strength evidence gap suspected suspected_target firmness"
    assert notes.keys() == {*names.split(), "mixed_lead", "mixed_gap", "mixed_target"}
    assert notes["strength"] in STRENGTHS
    assert notes["evidence"] > 0 if kind == "batch" else notes["evidence"] == 0
    assert -1 <= notes["gap"] <= 1
    assert notes["suspected_target"] in range(-1, CLASSES)
    assert notes["firmness"] > 0
    assert 0 <= notes["mixed_lead"] <= 1
    assert -1 <= notes["mixed_gap"] <= 1


@pytest.fixture
def second(monkeypatch):
    """What the second sieve was given: numbers, the model as it was, images and the same moved."""
    given: list = []
    images: list = []

    def moments(model, *both):
        images.append(both)
        return displacement_moments(model, *both)

    def spy(model, now, added, **numbers):
        given.append((numbers, copy.deepcopy(model), *images.pop()))
        assert torch.equal(now.log_p_NK, observe(model, now.x_NCHW).log_p_NK)
        return sieve_against_within(model, now, added, **numbers)

    monkeypatch.setattr(ngf, "displacement_moments", moments)
    monkeypatch.setattr(ngf, "sieve_against_within", spy)
    return given


@pytest.mark.parametrize(
    ("gap", "left", "share"),
    [(0.9, 1.0, 1), (0.8, 1.0, 1), (0.8, 0.5, 0.5), (0.4, 1.0, 0.5), (0.4, 0.5, 0.25), (0.4, 0, 0)],
)
def test_the_second_budget_follows_the_suspicion(
    run, suspected, second, monkeypatch, gap, left, share
):
    monkeypatch.setattr(ngf, "FAR", 0.0)
    suspected(gap, left, target=2)
    numbers = {"least_gap": 0.4, "sure_gap": 0.8, "firm": 0.16, "budget": 0.03}
    notes = run(**numbers, steps=0).notes
    assert (notes["gap"], notes["suspected"], notes["suspected_target"]) == (gap, 1, 2)
    assert len(second) == (2 if left >= 0.5 else 1)
    for numbers, *_ in second:
        assert numbers == {
            "weak": ngf.SLIGHT, "firm": 0.16, "budget": pytest.approx(0.03 * share), "needed": True
        }  # fmt: skip


@pytest.mark.parametrize(
    ("gap", "left", "firmness"),
    [
        (0.2, 0.74, 0.01),  # the first sieve weakened it
        (0.2, 0.76, 0.0),
        (0.5, 0.76, 0.0),  # without doubt, but not far beyond
        (0.8, 1.0, 0.01),
    ],
)
def test_what_clean_images_may_use_is_not_filtered_beyond_the_budget(
    run, suspected, believed, gap, left, firmness
):
    suspected(gap, left)
    notes = run(least_gap=0.2, sure_gap=0.4, firm=0.16, budget=0.0, steps=0).notes
    assert notes["firmness"] == pytest.approx(firmness)


def test_what_the_first_sieve_weakened_counts_and_not_what_its_milder_one_left(
    run, suspected, believed
):
    suspected(0.5, 0.5, then=1.0)
    notes = run(least_gap=0.2, sure_gap=0.4, firm=0.16, budget=0.0, steps=0).notes
    assert notes["firmness"] == pytest.approx(0.01)


def test_a_milder_first_sieve_has_a_second_one_after_it(run, suspected, first):
    """Without doubt, but perhaps what clean images use: the second sieve may leave it."""
    given = suspected(0.5, 0.76)
    run(least_gap=0.2, sure_gap=0.4, firm=0.16, budget=0.03, steps=0)
    assert [budget for budget, *_ in first] == [0.03]
    assert "again" not in given


def test_what_is_not_suspected_is_not_sieved_again(run, suspected, second):
    given = suspected(gap=0.39, target=2)
    purified = run(least_gap=0.4, doubt=1.0, steps=0)
    assert not second
    assert same(purified.model, given["models"][1])
    notes = purified.notes
    assert (notes["suspected"], notes["suspected_target"], notes["firmness"]) == (0, -1, 0)


@pytest.mark.parametrize(("budget", "part"), [(0.0, 1 / 16), (NEVER, 1)])
def test_the_second_sieve_is_as_firm_as_its_budget_allows(run, suspected, believed, budget, part):
    suspected()
    notes = run(budget=budget, firm=0.16, steps=0).notes
    assert notes["firmness"] == pytest.approx(0.16 * part)


@pytest.fixture
def first(monkeypatch):
    """What the first sieve was allowed to cost, each time, and what it made of the victim."""
    given: list = []

    class Spied(Sieve):
        def within(self, budget):
            given.append((budget, *super().within(budget)))
            return given[-1][1:]

    monkeypatch.setattr(ngf, "Sieve", Spied)
    return given


@pytest.mark.parametrize(
    ("where", "left", "sure_gap", "share"),
    [
        ("everywhere", 0.1, 0.8, ngf.MILD),
        ("in_windows", 0.1, 0.8, 0.9),
        ("in_windows", 0.76, 0.4, ngf.MILD),
    ],
)
@pytest.mark.parametrize("target", [2, -1])
@pytest.mark.parametrize("then", [1.0, 0.5])
def test_what_is_added_and_certain_is_left_to_the_second_sieve(
    run, suspected, first, second, where, left, sure_gap, share, target, then
):
    """Of what windows show the first sieve keeps what it takes by itself."""
    if where == "everywhere":
        given = suspected(gap=0.8, left=left, target=target, then=then)
    else:
        given = suspected(gap=0.1, left=left, in_windows=(0.8, target), then=then)
    numbers = {"least_gap": 0.4, "sure_gap": sure_gap, "firm": 0.16, "budget": 0.03}
    notes = run(**numbers, window=0.03, search=5, steps=0).notes
    assert [budget for budget, *_ in first] == [0.03, pytest.approx(0.03 * share)]
    mild, found, fresh, strict = given["again"]
    assert same(mild, first[1][1])
    assert notes["strength"] == first[1][2] in STRENGTHS
    assert (found.gap, found.target, found.left) == (0.8, target, left)
    assert same(fresh, given["models"][0])
    assert same(strict, given["models"][2])
    assert len(given["judged"]) == 5
    options, model, *_ = second[0]
    assert options["budget"] == pytest.approx(0.03 * then)
    assert same(model, mild)


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        ({"gap": 0.7}, {}),
        ({"gap": 0.1}, {}),
        ({"gap": 0.8}, {"firm": 0.0}),
        ({"gap": 0.1, "of_warps": (0.9, 2)}, {}),
        ({"gap": 0.1, "of_styles": (0.9, 2)}, {}),
        ({"gap": 0.1}, {"waves": 0.1}),
        ({"gap": 0.1, "of_classes": (0.9, 2), "left": 0.5}, {"classes": 0.1}),
    ],
)
def test_anything_else_is_not(run, suspected, rippled, first, found, changes):
    """In doubt, where there is no second sieve, and where what was found opens a part of the
    backdoor at best (a bend, a style, a wave, one for each class) the first sieve has to help."""
    given = suspected(**found)
    rippled(gap=0.9)
    numbers = {"least_gap": 0.4, "sure_gap": 0.8, "firm": 0.16, "budget": 0.03}
    numbers |= {"warps": 0.03, "styles": 0.02}
    run(**{**numbers, **changes}, steps=0)
    assert [budget for budget, *_ in first] == [0.03]
    assert "again" not in given


def test_without_firmness_the_second_sieve_is_left_out(run, suspected):
    given = suspected()
    purified = run(firm=0.0, least_gap=0.5, steps=0)
    assert purified.notes["firmness"] == 0
    assert same(purified.model, given["models"][1])
    assert "target" not in given
    assert not same(run(firm=0.1, least_gap=0.5, steps=0).model, given["models"][1])


def test_the_second_sieve_goes_against_the_moved_images(run, suspected, second, clean):
    """It gets the images of the first one, each moved by up to `reach`, and works on its model."""
    given = suspected(left=0.4)
    purified = run(steps=0, firm=0.3, reach=2.0, budget=NEVER)
    ((_, model, x_NCHW, moved_NCHW),) = second
    assert same(model, given["models"][1])
    assert torch.equal(x_NCHW, first_images(clean, 1)[0])
    length_N = (moved_NCHW - x_NCHW).mean((1, 2, 3)) / MOVE
    assert length_N.min() < 0.4
    assert 1.6 < length_N.max() < 2.0001
    added = displacement_moments(model, x_NCHW, moved_NCHW)
    sieve_against(model, observed(clean, 1, model=model), added, weak=ngf.SLIGHT, firm=0.3)
    assert same(purified.model, model)


@pytest.mark.parametrize(
    ("left", "target", "gap", "rounds"),
    [(0.5, 1, 1.0, 2), (0.49, 1, 1.0, 1), (1.0, -1, 1.0, 1), (1.0, 1, 0.3, 0)],
)
def test_where_much_is_left_what_the_filtered_model_lets_through_is_searched_too(
    run, suspected, second, monkeypatch, left, target, gap, rounds
):
    """And the sieved model is filtered anew against all of it, within the same budget."""
    given, searched = suspected(gap, left, target), []

    def led_to(model, target, draw, search, **options):
        searched.append(copy.deepcopy(model))
        return torch.full((len(search), 3, SIZE, SIZE), MOVE * 2.0 ** len(searched))

    monkeypatch.setattr("ngf.looks.led_to", led_to)
    run(steps=0, least_gap=0.4, reach=0.5)
    assert len(second) == rounds
    assert len(searched) == (rounds if target >= 0 else 0)
    sieved = given["again"][0] if rounds else victim()
    assert all(same(model, sieved) for _, model, *_ in second)
    for number, (_, _, x_NCHW, moved_NCHW) in enumerate(second[: len(searched)]):
        longest = 0.5 * MOVE * 2.0 ** (number + 1)
        assert 0.5 * longest < (moved_NCHW - x_NCHW).mean((1, 2, 3)).max() < 1.001 * longest
    assert [same(model, sieved) for model in searched] == [True, False][: len(searched)]


@pytest.fixture
def displays(monkeypatch):
    """Put nothing in the place of tuning; returns what it was given and shown."""
    given: dict = {"shown": []}

    def descend(model, batches, *, steps, show, **rest):
        given.update(model=model, **rest)
        for batch in batches.take(steps):
            with show(batch) as shown:
                given["shown"].append((batch, shown))
        return 0

    monkeypatch.setattr(ngf, "descend", descend)
    return given


def lengths(displays) -> torch.Tensor:
    """How far each moved image was moved, in units of the move [steps, moved]."""
    found = [
        (shown_NCHW[BATCH:] - x_NCHW[: len(shown_NCHW) - BATCH]).mean((1, 2, 3)) / MOVE
        for (x_NCHW, _), (shown_NCHW, _) in displays["shown"]
    ]
    return torch.stack(found)


def check_moved(displays, reach, count):
    """`count` images of each batch are moved, by anything up to `reach`."""
    found = lengths(displays)
    assert found.shape[1] == count
    assert 0.8 * reach < found.max() <= 1.001 * reach
    assert found.min() < 0.3 * reach
    for (x_NCHW, _), (shown_NCHW, _) in displays["shown"]:
        assert torch.equal(shown_NCHW[:BATCH], x_NCHW)


@pytest.mark.parametrize("kind", ["batch", "group"])
@pytest.mark.parametrize(("left", "count"), [(1.0, 12), (0.5, 6), (0.0, 0)])
def test_as_much_is_moved_as_is_left(run, suspected, displays, kind, left, count):
    suspected(left=left)
    run(kind, reach=2.0, share=0.75, steps=12)
    if count:
        check_moved(displays, 2.0, count)
    assert all(len(shown[0]) == BATCH + count for _, shown in displays["shown"])


def test_where_nothing_is_suspected_nothing_is_moved(run, suspected, displays):
    suspected(gap=0.1)
    run(share=1.0, **NO_SECOND)
    for (x_NCHW, _), (shown_NCHW, _) in displays["shown"]:
        assert torch.equal(shown_NCHW, x_NCHW)


def test_tuning_gets_the_sieved_model_and_the_rule(run, displays):
    purified = run(
        fisher="identity", layers="head", lr=0.2, eta=0.3, damping=0.4, damping_last=0.5, views=2
    )
    assert displays["model"] is purified.model
    assert displays["rule"] == Rule(0.2, 0.3, 0.4, "identity", "head", 0.5)
    assert displays["views"] == 2


def test_the_fisher_matters(run):
    assert not equal(run(fisher="identity"), run(fisher="diagonal"))


def test_trust_is_in_the_victim_and_not_in_the_sieved_model(run, displays):
    purified = run(trust=1.0, weak=1.0, budget=NEVER, **NO_SECOND)
    for (x_NCHW, y_N), (_, p_NK) in displays["shown"]:
        torch.testing.assert_close(p_NK, between(x_NCHW, y_N, 1.0))
        right_N = answers(victim(), x_NCHW).argmax(1) == y_N
        assert (p_NK - answers(purified.model, x_NCHW))[right_N].abs().max() > 0.01


# Windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "window", "looks"), [(0.5, 0.03, 1), (0.49, 0.03, 4), (0.0, 0.0, 2)]
)
def test_windows_are_searched_where_nothing_is_suspected(run, suspected, gap, window, looks):
    """And once more in the end."""
    given = suspected(gap=gap)
    run(window=window, least_gap=0.5, steps=0)
    assert len(given["looks"]) == looks
    if looks == 4:
        expected = windows(SIZE, SIZE, window)
        for got in given["looks"][1::2]:
            assert torch.equal(got.mask_M1HW, expected.mask_M1HW)
            assert (got.radius, got.each) == (window, expected.each)
        assert not torch.equal(given["views"][1], given["views"][3])


@pytest.mark.parametrize(
    ("gap", "shown", "looks"), [(0.4, 0.0, 1), (0.39, 0.0, 2), (0.0, 0.39, 3), (0.0, 0.4, 2)]
)
def test_what_the_whole_image_shows_unclearly_is_looked_for_in_windows_too(
    run, suspected, gap, shown, looks
):
    """And once more, on other views, where these are unclear as well; what is furthest counts."""
    given = suspected(gap=gap, in_windows=(shown, 2))
    notes = run(window=0.1, least_gap=0.1, steps=0).notes
    assert len(given["looks"]) == looks
    assert (notes["gap"], notes["suspected_target"]) == max((gap, 1), (shown, 2))
    if looks == 3:
        assert not torch.equal(given["views"][1], given["views"][2])


@pytest.mark.parametrize(("gap", "looks"), [(0.4, 3), (0.39, 4)])
def test_so_it_is_in_the_end(run, suspected, gap, looks):
    given = suspected(gap=0.0, in_the_end=(gap, 2))
    notes = run(window=0.1, least_gap=0.1, steps=0).notes
    assert len(given["looks"]) == looks
    assert (notes["gap"], notes["suspected_target"]) == (gap, 2)


def test_probabilities_judge_the_whole_image_and_margins_the_windows(run, suspected, clean):
    given = suspected(gap=0.1)
    run(window=0.1, least_gap=0.5, steps=0)
    x_NCHW = first_images(clean, 1)[0]
    expected = Sureness(victim(), x_NCHW)
    assert given["judges"][::2] == [Probability, Probability]
    for parts in given["judges"][1::2]:
        asked = parts(victim())
        assert asked.usual == expected.usual
        assert torch.equal(asked(x_NCHW), expected(x_NCHW))


def test_what_windows_show_stands_for_the_backdoor(run, suspected, rippled, second, displays):
    """Or what is found at places in them, on other views; no wave is tried."""
    given = suspected(gap=0.1, left=0.5, in_windows=(1.0, 2))
    waves = rippled()
    numbers = {"window": 0.1, "waves": 0.1, "least_gap": 0.5, "budget": 0.04}
    notes = run(**numbers, share=1.0, reach=2.0, steps=12, search=5, moves=2).notes
    assert not waves
    assert "target" not in given
    found, model, strict = given["narrowed"]
    assert (found.windowed, found.target) == (True, 2)
    assert same(model, given["again"][0])
    assert same(strict, given["models"][2])
    assert given["limits"]["moves"] == 2
    assert given["limits"]["steps"] == 5
    for other in given["views"]:
        assert not torch.equal(given["parted"], other)
    assert (notes["gap"], notes["suspected_target"]) == (1.0, 2)
    assert [numbers["budget"] for numbers, *_ in second] == [0.02]
    check_moved(displays, 2.0, BATCH // 2)


def test_windows_that_lead_to_no_one_class_are_not_narrowed(run, suspected, second):
    given = suspected(gap=0.1, in_windows=(1.0, -1))
    run(window=0.1, least_gap=0.5, steps=0)
    assert len(second) == 1
    assert "narrowed" not in given


def test_where_no_look_shows_enough_the_furthest_counts(run, suspected, rippled):
    suspected(gap=0.1, in_windows=(0.3, 2))
    waves = rippled(gap=0.2)
    notes = run(window=0.1, waves=0.1, least_gap=0.5, steps=0).notes
    assert len(waves) == 1
    assert (notes["gap"], notes["suspected"], notes["suspected_target"]) == (0.3, 0, -1)


# Warps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "warps", "looks"),
    [(0.5, 0.1, [True]), (0.49, 0.1, [True, False]), (0.0, 0.0, [False])],
)
def test_warps_are_searched_first(run, suspected, clean, gap, warps, looks):
    given = suspected(of_warps=(gap, 0))
    run(warps=warps, least_gap=0.5, steps=0)
    assert [isinstance(search, Warps) for search in given["looks"]] == looks
    if warps:
        assert given["looks"][0] == Warps(warps, PER)
        x_NCHW = first_images(clean, 1)[0]
        assert given["judges"][0](victim()).usual == Sureness(victim(), x_NCHW).usual


def test_what_warps_show_stands_for_the_backdoor(run, suspected, rippled, second, displays):
    """Images are bent in the last move; nothing is searched for in its place."""
    given = suspected(gap=1.0, target=1, of_warps=(1.0, 2))
    waves = rippled()
    numbers = {"warps": 0.1, "waves": 0.1, "least_gap": 0.5, "budget": 0.04}
    notes = run(**numbers, share=1.0, reach=2.0, steps=3).notes
    assert not waves
    assert "target" not in given
    assert (notes["gap"], notes["suspected_target"]) == (1.0, 2)
    assert [numbers["budget"] for numbers, *_ in second] == [0.04]
    _, *later = given["bent"]  # the first one is the second sieve's
    for ((x_NCHW, _), (shown_NCHW, _)), (images, way_N2HW, moved_NCHW) in zip(
        displays["shown"], later, strict=True
    ):
        assert torch.equal(images, x_NCHW)
        assert torch.equal(shown_NCHW[BATCH:], moved_NCHW)
        assert 1.5 * MOVE < way_N2HW.max() <= 2.001 * MOVE
        assert 0 <= way_N2HW.min() < 0.5 * MOVE


# Waves ----------------------------------------------------------------------------------------


@pytest.fixture
def rippled(monkeypatch):
    """Put a finding in the place of the waves; returns what they were given."""
    given: list = []

    def put(gap=1.0, target=2, left=0.25):
        def strongest(victim, sieved, strict, shown, *, judge, **numbers):
            given.append((copy.deepcopy((victim, sieved, strict)), shown, judge, numbers))
            moves_MCHW = torch.full((1, 1, SIZE, SIZE), MOVE)
            return Suspicion(gap, target, left, moves_MCHW, as_found=True, in_part=True)

        monkeypatch.setattr("ngf.looks.strongest", strongest)
        return given

    return put


def test_waves_are_laid_over_the_first_images_of_the_victim_and_its_copy(
    run, suspected, rippled, clean
):
    models, given = suspected(gap=0.0), rippled()
    run(waves=0.2, least_gap=0.5, steps=0, moves=3)
    ((asked, shown, judge, numbers),) = given
    assert numbers == {"rms": 0.2, "moves": 3}
    assert all(map(same, asked, models["models"]))
    for got, expected in zip((shown.x_NCHW, shown.y_N), first_images(clean, 1), strict=True):
        assert torch.equal(got, expected)
    assert judge(victim()).usual == Sureness(victim(), shown.x_NCHW).usual


@pytest.mark.parametrize(("gap", "waves", "tried"), [(0.5, 0.1, 0), (0.49, 0.1, 1), (0.0, 0.0, 0)])
def test_waves_are_tried_where_nothing_is_suspected(run, suspected, rippled, gap, waves, tried):
    suspected(gap=gap)
    given = rippled()
    run(waves=waves, least_gap=0.5, steps=0)
    assert len(given) == tried


@pytest.mark.parametrize(
    ("wave_gap", "gap", "target"), [(0.2, 0.2, 2), (0.19, 0.19, -1), (0.05, 0.1, -1)]
)
def test_a_wave_counts_as_a_displacement_does(run, suspected, rippled, wave_gap, gap, target):
    suspected(gap=0.1)
    rippled(gap=wave_gap)
    notes = run(waves=0.1, least_gap=0.2, steps=0).notes
    assert (notes["suspected"], notes["suspected_target"]) == (target >= 0, target)
    assert notes["gap"] == gap


def test_what_waves_show_stands_for_the_backdoor(run, suspected, rippled, second, displays):
    """In the second sieve and in the last move; no displacement is searched for."""
    given = suspected(gap=0.0)
    rippled(left=0.5)
    numbers = {"waves": 0.1, "least_gap": 0.5, "budget": 0.04}
    run(**numbers, share=1.0, reach=2.0, steps=12)
    assert "target" not in given
    assert [numbers["budget"] for numbers, *_ in second] == [0.02]
    check_moved(displays, 2.0, BATCH // 2)


def test_where_nothing_is_suspected_waves_are_sieved_within_a_share_of_the_budget(
    run, suspected, rippled, second, displays
):
    """Against the waves alone, whatever look showed more, and no image is moved."""
    given = suspected(gap=0.3)
    rippled(gap=-0.1)
    numbers = {"waves": 0.1, "least_gap": 0.5, "budget": 0.04, "doubt": 0.25, "firm": 0.5}
    notes = run(**numbers, share=1.0, reach=2.0).notes
    ((numbers, model, x_NCHW, moved_NCHW),) = second
    assert numbers == {"weak": ngf.SLIGHT, "firm": 0.5, "budget": 0.01, "needed": False}
    assert same(model, given["models"][1])
    assert "target" not in given
    assert (notes["gap"], notes["suspected"], notes["suspected_target"]) == (0.3, 0, -1)
    for batch, shown in displays["shown"]:
        assert torch.equal(shown[0], batch[0])
    length_N = (moved_NCHW - x_NCHW).mean((1, 2, 3)) / MOVE
    assert length_N.min() < 0.4
    assert 1.6 < length_N.max() < 2.0001


@pytest.mark.parametrize("off", [{"doubt": 0.0}, {"firm": 0.0}, {"waves": 0.0}])
def test_in_doubt_nothing_is_sieved_again_where_that_is_not_asked_for(
    run, suspected, rippled, second, off
):
    given = suspected(gap=0.3)
    rippled(gap=-0.1)
    purified = run(**{"waves": 0.1, "doubt": 0.25} | off, least_gap=0.5, steps=0)
    assert not second
    assert same(purified.model, given["models"][1])


@pytest.mark.parametrize(("third", "times"), [(-1, 1), (2, 0)])
def test_where_mixtures_show_a_class_there_is_no_doubt(
    run, suspected, rippled, second, monkeypatch, third, times
):
    suspected(gap=0.3)
    rippled(gap=-0.1)
    monkeypatch.setattr(Mixtures, "tells_of", lambda self: third)
    run(waves=0.1, doubt=0.25, least_gap=0.5, mixed_firm=0.0, steps=0)
    assert len(second) == times


@pytest.mark.parametrize(("budget", "firmness"), [(0.0, 0.0), (NEVER, 0.16)])
def test_in_doubt_waves_that_clean_images_use_are_left(
    run, suspected, rippled, believed, budget, firmness
):
    suspected(gap=0.3)
    rippled(gap=0.2)
    numbers = {"waves": 0.1, "least_gap": 0.5, "doubt": 1.0, "firm": 0.16}
    notes = run(**numbers, budget=budget, steps=0).notes
    assert notes["firmness"] == pytest.approx(firmness)


# Styles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wave_gap", "styles", "looks"), [(0.5, 0.1, 4), (0.49, 0.1, 7), (0.5, 0, 3), (0, 0, 5)]
)
def test_styles_are_searched_after_waves_and_for_longer(
    run, suspected, rippled, clean, wave_gap, styles, looks
):
    """And once more in the end, before windows."""
    given = suspected(gap=0.1)
    rippled(gap=wave_gap)
    run(warps=0.1, window=0.1, waves=0.1, styles=styles, least_gap=0.5, steps=0, search=3)
    assert len(given["looks"]) == looks
    usual = Sureness(victim(), first_images(clean, 1)[0]).usual
    for which in {3: (), 4: (3,), 5: (), 7: (3, 5)}[looks] if styles else ():
        assert given["looks"][which] == Styles(styles, EACH)
        assert given["lengths"][which] == LONGER * 3
        assert given["judges"][which](victim()).usual == usual
    if looks == 7:
        assert not torch.equal(given["views"][3], given["views"][5])


@pytest.mark.parametrize(("wave_gap", "target"), [(0.9, 2), (0.7, 1)])
def test_of_a_wave_and_a_style_the_one_that_leads_further_counts(
    run, suspected, rippled, wave_gap, target
):
    suspected(gap=0.1, of_styles=(0.8, 1))
    rippled(gap=wave_gap)
    notes = run(waves=0.1, styles=0.1, least_gap=0.5, steps=0).notes
    assert (notes["gap"], notes["suspected_target"]) == (max(wave_gap, 0.8), target)


def test_what_styles_show_stands_for_the_backdoor(run, suspected, second, displays):
    """Images take the styles on in the last move; nothing is searched for in their place."""
    given = suspected(gap=0.1, of_styles=(1.0, 2))
    numbers = {"styles": 0.1, "least_gap": 0.5, "budget": 0.04}
    notes = run(**numbers, share=1.0, reach=0.5, steps=3).notes
    assert "target" not in given
    assert (notes["gap"], notes["suspected_target"]) == (1.0, 2)
    assert [numbers["budget"] for numbers, *_ in second] == [0.04]
    assert displays["shown"]
    for (x_NCHW, _), (shown_NCHW, _) in displays["shown"]:
        light_N1HW = x_NCHW.sum(1, keepdim=True)  # what each of the kernels multiplies
        change_NCHW = shown_NCHW[BATCH:] - x_NCHW
        length_N = change_NCHW.mean((1, 2, 3)) / light_N1HW.mean((1, 2, 3))
        expected_NCHW = length_N[:, None, None, None] * light_N1HW.expand_as(x_NCHW)
        torch.testing.assert_close(change_NCHW, expected_NCHW, atol=1e-5, rtol=0)
        assert 0 <= length_N.min() < 0.25 * MOVE < length_N.max() <= 0.5001 * MOVE


@pytest.mark.parametrize("styles", [0.8, 0.49])
def test_images_are_moved_by_a_wave_and_a_style_where_both_show_enough(
    run, suspected, rippled, second, displays, styles
):
    """A wave of 1 / 255 everywhere, and kernels that give every pixel a share of its colours."""
    suspected(gap=0.1, of_styles=(styles, 1))
    rippled(gap=0.9, left=1.0)
    numbers = {"waves": 0.1, "styles": 0.1, "least_gap": 0.5}
    run(**numbers, share=1.0, reach=1.0, steps=12)
    alike = [
        is_flat
        for (x_NCHW, _), (shown_NCHW, _) in displays["shown"]
        for is_flat in ((shown_NCHW[BATCH:] - x_NCHW).std((1, 2, 3)) < 1e-6).tolist()
    ]
    assert len(alike) > 100
    share = sum(alike) / len(alike)
    assert share == 1 if styles < 0.5 else 0.3 < share < 0.7


@pytest.mark.parametrize("look", ["warps", "styles"])
def test_a_search_with_views_of_its_own_takes_none_from_the_others(run, suspected, look):
    """Where it finds nothing the others see what they would see without it."""
    views = []
    for length in (0.0, 0.03):
        given = suspected(gap=0.1)
        run(**{look: length}, window=0.1, least_gap=0.5, steps=0)
        looks = zip(given["looks"], given["views"], strict=True)
        views.append([seen for search, seen in looks if not isinstance(search, Warps | Styles)])
        del views[-1][2:]  # of the searches that come after them, with views of their own too
    assert len(given["looks"]) == {"warps": 5, "styles": 6}[look]
    for without, beside in zip(*views, strict=True):
        assert torch.equal(without, beside)


# Once more ------------------------------------------------------------------------------------


def test_in_the_end_the_whole_image_is_searched_once_more_on_other_views(run, suspected):
    """The first search may have missed what is there."""
    given = suspected(gap=0.1, in_the_end=(0.6, 2))
    numbers = {"warps": 0.1, "window": 0.1, "styles": 0.1, "least_gap": 0.5}
    notes = run(**numbers, steps=0, search=3).notes
    assert (notes["gap"], notes["suspected_target"]) == (0.6, 2)
    _, first, *_, last = given["looks"]
    assert (first.radius, first.each, len(first)) == (last.radius, last.each, len(last))
    assert torch.equal(first.mask_M1HW, last.mask_M1HW)
    assert given["judges"][-1] is Probability
    assert given["lengths"][-1] == 3
    _, seen, *_, seen_last = given["views"]
    assert not torch.equal(seen, seen_last)


# Class by class ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "classes", "most", "looks"),
    [
        (0.49, 0.1, CLASSES, 5),
        (0.5, 0.1, CLASSES, 1),
        (0.49, 0.0, CLASSES, 4),
        (0.49, 0.1, CLASSES - 1, 4),
    ],
)
def test_what_no_other_look_shows_is_searched_class_by_class(
    run, suspected, clean, monkeypatch, gap, classes, most, looks
):
    """Not where there are too many of them."""
    monkeypatch.setattr("ngf.looks.CLASSES", most)
    given = suspected(gap=gap)
    run(window=0.1, classes=classes, least_gap=0.5, steps=0, search=3)
    assert len(given["looks"]) == looks
    if looks == 5:
        look, expected = given["looks"][3], for_each_class(CLASSES, classes)
        assert (look.radius, look.each, look.as_found) == (classes, expected.each, True)
        assert given["lengths"][3] == LONGER * 3
        assert torch.equal(look.mask_M1HW, expected.mask_M1HW)
        assert given["labels"][3] == 3 * [list(range(CLASSES)) * (7 // CLASSES)]
        usual = Sureness(victim(), first_images(clean, 1)[0]).usual
        assert given["judges"][3](victim()).usual == usual


@pytest.mark.parametrize(("left", "expected"), [(0.74, 0.6), (0.75, 0.2), (1.0, 0.2)])
def test_what_the_first_sieve_hardly_changes_is_the_class_and_no_backdoor(
    run, suspected, left, expected
):
    suspected(gap=0.2, of_classes=(0.6, 2), left=left)
    notes = run(classes=0.1, least_gap=0.5, steps=0).notes
    assert notes["gap"] == expected
    assert notes["suspected"] == (expected == 0.6)


def test_where_mixtures_show_a_class_no_class_is_searched_by_itself(run, suspected, leading):
    """That class opens in images of two others, which a search in one of them meets by half."""
    given = suspected(gap=0.1)
    for lead, looks in ((0.5, 2), (0.49, 3)):
        given["looks"].clear()
        leading(lead)
        run(**DRAWN, classes=0.1, least_gap=0.5)
        assert len(given["looks"]) == looks


def test_what_one_class_shows_stands_for_the_backdoor(run, suspected, second, displays):
    given = suspected(gap=0.1, of_classes=(1.0, 2), left=0.7)
    notes = run(classes=0.1, least_gap=0.5, share=1.0, reach=0.5, steps=3).notes
    assert "target" not in given  # nothing is searched for in its place
    assert (notes["gap"], notes["suspected_target"]) == (1.0, 2)
    assert len(second) == 1
    assert displays["shown"]
    for (x_NCHW, _), (shown_NCHW, _) in displays["shown"]:
        length_N = (shown_NCHW[BATCH:] - x_NCHW[: round(0.7 * BATCH)]).mean((1, 2, 3))
        assert 0 <= length_N.min() < 0.25 * MOVE < length_N.max() <= 0.5001 * MOVE


# Large images -----------------------------------------------------------------------------------


def test_large_images_are_seen_by_fewer_at_a_time(run, suspected, monkeypatch):
    given = suspected()
    monkeypatch.setattr(ngf, "AT_ONCE", 2 * BATCH * SIZE**2)
    monkeypatch.setattr(ngf, "IN_A_STEP", (TRIED + 1) * SIZE**2)
    kept = []
    monkeypatch.setattr(ngf, "observe", lambda *args: kept.append(args[1]) or observe(*args))
    run(views=2)
    assert {len(x_NCHW) for x_NCHW in kept} == {2 * BATCH}
    assert given["most"] == given["moves"]["most"] == TRIED + 1


# Mixtures -------------------------------------------------------------------------------------


@pytest.fixture
def leading(monkeypatch):
    """Let a class draw mixtures by so much more than the next; returns what joining added."""
    given: list = []

    def put(lead=0.5, third=1):
        real = Mixtures.added

        def drawn_to(self, least_lead, least_gap):
            assert least_gap == 0.3
            return third if lead >= least_lead else -1

        def added(self, model, count, asked):
            given.append((copy.deepcopy(model), count, real(self, model, count, asked), asked))
            return given[-1][2]

        monkeypatch.setattr(Mixtures, "drawn_to", drawn_to)
        monkeypatch.setattr(Mixtures, "added", added)
        return given

    return put


DRAWN = {
    "mixed_lead": 0.5,
    "mixed_gap": 0.3,
    "mixed_firm": 0.2,
    "mixed_longer": 2.0,
    "answered": 1.0,
}


def test_where_a_class_draws_mixtures_what_joining_adds_is_sieved_too(run, leading, clean):
    given = leading()
    purified = run(**DRAWN, **NO_SECOND, steps=0, budget=NEVER)
    ((model, count, added, third),) = given
    assert (count, third) == (ngf.JOINED, 1)
    assert not same(purified.model, model)
    sieve_against(model, observed(clean, 1, model=model), added, weak=ngf.SLIGHT, firm=0.2)
    assert same(purified.model, model)


def test_what_joining_adds_stays_where_clean_images_use_it(run, leading, believed):
    given = leading()
    purified = run(**DRAWN, **NO_SECOND, steps=0, budget=0.0)
    ((model, *_),) = given
    assert same(purified.model, model)


@pytest.mark.parametrize(
    ("firm", "answered", "count"),
    [(0.0, 1.0, BATCH // 2), (0.2, 1.0, BATCH // 2), (0.2, 2.5, 5 * BATCH // 4)],
)
def test_hard_mixtures_are_shown_and_for_longer(run, leading, displays, firm, answered, count):
    given = leading()
    run(**DRAWN | {"mixed_firm": firm, "answered": answered}, **NO_SECOND)
    assert len(given) == (firm > 0)
    assert len(displays["shown"]) == 2 * SHORT["steps"]
    for (x_NCHW, _), (shown_NCHW, p_NK) in displays["shown"]:
        assert torch.equal(shown_NCHW[:BATCH], x_NCHW)
        assert len(shown_NCHW) == len(p_NK) == BATCH + count


@pytest.mark.parametrize(
    ("lead", "third", "gap", "sieved"),
    [
        (0.5, 1, 0.0, True),
        (0.49, 1, 0.0, False),  # no class draws them
        (0.5, 1, 0.8, False),  # it is suspected already, without doubt
        (0.5, 1, 0.7, True),
        (0.5, 2, 0.8, True),
        (0.5, -1, 0.0, False),
    ],
)
def test_mixtures_count_where_they_lead_to_what_is_not_known(
    run, suspected, leading, displays, lead, third, gap, sieved
):
    suspected(gap=gap, target=1)
    given = leading(lead, third)
    notes = run(**DRAWN, least_gap=0.5, sure_gap=0.8).notes
    assert notes["mixed_target"] == (third if lead >= 0.5 else -1)
    assert len(given) == sieved
    assert len(displays["shown"]) == (2 if sieved else 1) * SHORT["steps"]


@pytest.mark.parametrize(
    ("lead", "told", "gap", "expected"),
    [
        (0.0, 2, 0.0, 2),  # by its ways alone
        (0.0, -1, 0.0, -1),
        (0.0, 2, 0.5, -1),  # something else is suspected: what it leads to is not asked
        (0.5, 2, 0.0, 1),  # what its copy shows comes first
    ],
)
def test_where_nothing_is_suspected_the_ways_of_two_halves_to_lie_tell(
    run, suspected, leading, monkeypatch, lead, told, gap, expected
):
    suspected(gap=gap)
    given = leading(lead, 1)
    monkeypatch.setattr(Mixtures, "tells_of", lambda self: told)
    notes = run(**DRAWN, least_gap=0.5, sure_gap=0.8).notes
    assert notes["mixed_target"] == expected
    assert [third for *_, third in given] == [expected] * (expected >= 0)


@pytest.mark.parametrize(("answered", "count"), [(0.0, 0), (0.5, BATCH // 2), (3.0, 3 * BATCH)])
def test_without_a_leading_class_mixtures_are_shown_as_the_victim_answers_them(
    run, displays, answered, count
):
    purified = run(mixed_lead=1.0, mixed_longer=2.0, answered=answered, **NO_SECOND)
    assert purified.steps == SHORT["steps"]
    mixed = []
    for (x_NCHW, _), (shown_NCHW, p_NK) in displays["shown"]:
        assert torch.equal(shown_NCHW[:BATCH], x_NCHW)
        assert len(shown_NCHW) == len(p_NK) == BATCH + count
        torch.testing.assert_close(p_NK[BATCH:], answers(victim(), shown_NCHW[BATCH:]))
        mixed.append(shown_NCHW[BATCH:])
    assert not count or not torch.equal(mixed[0], mixed[1])


@pytest.mark.parametrize(
    ("gap", "target", "third"),
    [
        (0.0, 1, -1),
        (0.9, -1, -1),
        (0.9, 1, -1),  # mixtures do not show what is suspected
        (0.8, 1, 1),  # without doubt, and mixtures say the same
    ],
)
def test_where_a_backdoor_is_suspected_the_filtered_model_limits_the_victims_answers(
    run, suspected, second, leading, monkeypatch, gap, target, third
):
    """To the class, which as many hold as was lost; nothing goes to one that mixtures show, too."""
    suspected(gap=gap, target=target, left=0.4)
    leading(1.0, third)
    given = []
    real = Mixtures.answered

    def answered(self, model, count, filtered, never, *, label, share):
        given.append((copy.deepcopy(model), count, copy.deepcopy(filtered), never, label, share))
        return real(self, model, count, filtered, never, label=label, share=share)

    def lost(self, model, filtered, label):
        assert same(model, victim())
        assert filtered is not None
        return 0.25 if label >= 0 else 0.0

    monkeypatch.setattr(Mixtures, "answered", answered)
    monkeypatch.setattr(Mixtures, "lost", lost)
    numbers = DRAWN | {"least_gap": 0.5, "sure_gap": 0.8}
    sieved_again = run(**numbers, steps=0).model
    run(**numbers)
    assert len(given) == SHORT["steps"]
    for model, count, filtered, never, label, share in given:
        assert same(model, victim())
        assert (count, never) == (BATCH, third)
        known = target if second and third < 0 else -1
        assert (label, share) == (known, 0.25 if known >= 0 else 0.0)
        assert same(filtered, sieved_again) if second else filtered is None
    assert bool(second) == (gap >= 0.5)


@pytest.mark.parametrize("lead", [0.0, 1.0])
def test_of_large_images_no_more_mixtures_are_shown_than_clean_images(
    run, leading, displays, monkeypatch, lead
):
    leading(lead)
    monkeypatch.setattr(ngf, "IN_A_STEP", 1)
    run(**DRAWN | {"answered": 3.0}, search=1, **NO_SECOND)
    assert all(len(shown[0]) == 2 * BATCH for _, shown in displays["shown"])


# How a batch is shown -------------------------------------------------------------------------


def batch(count):
    """Grey images, each a little different."""
    x_NCHW = 0.5 + 0.05 * torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator())
    return x_NCHW, torch.arange(count) % CLASSES


def shown(moves_MCHW, given, *, reach=3.0, share=1.0, trust=0.0):
    generator = torch.Generator().manual_seed(0)
    move = ngf._mover(Suspicion(1.0, 0, 1.0, moves_MCHW), moves_MCHW, reach, True, generator)
    with ngf._shown(victim(), trust, [ngf._moved(move, share)])(given) as pair:
        return pair


def test_a_batch_is_shown_as_it_is_and_under_parts_of_the_moves():
    moves_MCHW = 0.02 * torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    x_NCHW, y_N = batch(64)
    shown_NCHW, _ = shown(moves_MCHW, (x_NCHW, y_N))
    assert torch.equal(shown_NCHW[:64], x_NCHW)
    move_ND = (shown_NCHW[64:] - x_NCHW).flatten(1)
    along_NM = move_ND @ normalize(moves_MCHW.flatten(1)).T / moves_MCHW.flatten(1).norm(dim=1)
    part_N, which_N = along_NM.max(1)
    expected_ND = part_N[:, None] * moves_MCHW.flatten(1)[which_N]
    torch.testing.assert_close(move_ND, expected_ND, rtol=1e-3, atol=1e-5)
    assert set(which_N.tolist()) == {0, 1}
    assert 2.5 < part_N.max() <= 3.0001
    assert -1e-4 <= part_N.min() < 0.5


@pytest.mark.parametrize(("flip", "places"), [(True, {2, SIZE - 3}), (False, {2})])
def test_what_lies_in_a_window_is_moved_to_its_mirrored_place_too(flip, places):
    """Where training mirrors images; the images themselves stay as they are."""
    moves_MCHW = torch.zeros(1, 3, SIZE, SIZE)
    moves_MCHW[..., 2] = 0.02
    found = Suspicion(1.0, 0, 1.0, moves_MCHW, as_found=True, windowed=True)
    generator = torch.Generator().manual_seed(0)
    x_NCHW, _ = batch(64)
    moved_NW = (ngf._mover(found, moves_MCHW, 1.0, flip, generator)(x_NCHW) - x_NCHW).sum((1, 2))
    assert set(moved_NW.argmax(1).tolist()) == places
    torch.testing.assert_close(moved_NW.sum(1), moved_NW.amax(1))


@pytest.mark.parametrize(
    ("share", "count"), [(0.0, 0), (0.02, 0), (0.25, 4), (0.3, 5), (0.5, 8), (1.0, 16)]
)
def test_the_first_share_of_a_batch_is_moved(share, count):
    """By less than half of what tells one image from another."""
    x_NCHW, y_N = batch(16)
    moves_MCHW = torch.full((1, 3, SIZE, SIZE), 0.01)
    shown_NCHW, p_NK = shown(moves_MCHW, (x_NCHW, y_N), reach=1.0, share=share)
    assert len(shown_NCHW) == len(p_NK) == 16 + count
    assert torch.equal(shown_NCHW[:16], x_NCHW)
    nearest_N = torch.cdist(shown_NCHW[16:].flatten(1), x_NCHW.flatten(1)).argmin(1)
    assert nearest_N.tolist() == list(range(count))
    assert not any(torch.equal(*pair) for pair in zip(shown_NCHW[16:], x_NCHW, strict=False))


@pytest.mark.parametrize("trust", [0.0, 0.3, 1.0])
def test_answers_lie_between_labels_and_the_victims(trust):
    """A moved image keeps the answer to the image as it was, not the victim's to the moved one."""
    x_NCHW, y_N = batch(16)
    moves_MCHW = torch.rand(2, 3, SIZE, SIZE) - 0.5
    shown_NCHW, p_NK = shown(moves_MCHW, (x_NCHW, y_N), share=0.5, trust=trust)
    expected_NK = between(x_NCHW, y_N, trust)
    torch.testing.assert_close(p_NK[:16], expected_NK)
    torch.testing.assert_close(p_NK[16:], expected_NK[:8])
    torch.testing.assert_close(p_NK.sum(1), torch.ones(24))
    assert not p_NK.requires_grad
    moved_NK = answers(victim(), shown_NCHW[16:])
    assert (moved_NK - answers(victim(), x_NCHW[:8])).abs().max() > 0.01


@pytest.mark.parametrize(("move", "bound"), [(0.7, 1.0), (-0.7, 0.0)])
def test_moved_pixels_stay_pixels(move, bound):
    shown_NCHW, _ = shown(torch.full((1, 3, SIZE, SIZE), move), batch(8))
    assert shown_NCHW.min() >= 0
    assert shown_NCHW.max() <= 1
    assert (shown_NCHW[8:] == bound).any()


# Numbers that cannot be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"moves": 0}, "moves must be at least 1, got 0"),
        ({"search": 0}, "search must be at least 1, got 0"),
        ({"views": 0}, "views must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"weak": -0.1}, "weak must be at least 0, got -0.1"),
        ({"damp": -1.0}, "damp must be at least 0, got -1"),
        ({"budget": -0.01}, "budget must be at least 0, got -0.01"),
        ({"strong": -1.0}, "strong must be at least 0, got -1"),
        ({"reach": -1.0}, "reach must be at least 0, got -1"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"window": 1.5}, "window must lie between 0 and 1, got 1.5"),
        ({"waves": 1.5}, "waves must lie between 0 and 1, got 1.5"),
        ({"sure_gap": 0.0}, "sure_gap must lie between 1e-06 and 1, got 0"),
        ({"radius": 0.0}, "radius must lie between 1e-06 and 1, got 0"),
        ({"share": 1.5}, "share must lie between 0 and 1, got 1.5"),
        ({"share": -0.5}, "share must lie between 0 and 1, got -0.5"),
        ({"firm": -1.0}, "firm must be at least 0, got -1"),
        ({"doubt": 1.5}, "doubt must lie between 0 and 1, got 1.5"),
        ({"trust": -0.1}, "trust must lie between 0 and 1, got -0.1"),
        ({"trust": 1.1}, "trust must lie between 0 and 1, got 1.1"),
        ({"shift": SIZE}, f"shift must lie between 0 and {SIZE - 1}, got {SIZE}"),
        ({"layers": "all"}, r"unknown layers 'all': there is norms\+head, norms, head"),
        ({"fisher": "kfac"}, "unknown fisher 'kfac': there is diagonal, identity"),
        ({"mixed": 0}, "mixed must be at least 1, got 0"),
        ({"mixed_lead": 1.5}, "mixed_lead must lie between 0 and 1, got 1.5"),
        ({"mixed_gap": -0.1}, "mixed_gap must lie between 0 and 1, got -0.1"),
        ({"mixed_firm": -1.0}, "mixed_firm must be at least 0, got -1"),
        ({"mixed_longer": -1.0}, "mixed_longer must be at least 0, got -1"),
        ({"answered": -1.0}, "answered must be at least 0, got -1"),
        ({"lr": 1.5}, "lr must lie between 0 and 1, got 1.5"),
        ({"eta": -1.0}, "eta must be at least 0, got -1"),
        ({"damping": -1.0}, "damping must be at least 0, got -1"),
        ({"damping_last": -1.0}, "damping_last must be at least 0, got -1"),
    ],
)
def test_numbers_that_cannot_be_are_said(run, change, said):
    with pytest.raises(InputError, match=said):
        run(**change)
