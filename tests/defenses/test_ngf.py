"""NGF's three moves: what they may change, when the third one looks at the second, the notes."""

import pytest
import torch
from conftest import CLASSES, SIZE, colour_split, tiny_model
from torch import nn

from ngf import models, norms, params
from ngf.defenses import Clean, ngf
from ngf.errors import InputError
from ngf.exposure import Exposed
from ngf.models import batch_norms, head, norm_layers

N = 48
NEVER = 1.1  # more than all images
SHORT = {"moves": 2, "search": 6, "views": 1, "steps": 3, "batch_size": 16, "least_misled": 0.0}


@pytest.fixture
def clean() -> Clean:
    split = colour_split(N, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), split.flip)


@pytest.fixture
def run(numbers, clean):
    """Purify a tiny model with few steps; `kind` is its norm."""

    def purify(kind="batch", **changes):
        options = params.options(ngf.purify, {**numbers["defenses"]["ngf"], **SHORT, **changes}, "")
        return ngf.purify(victim(kind), clean, **options)

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
    """Parameters that are not the victim's any more."""
    before, after = victim(kind).named_parameters(), dict(purified.model.named_parameters())
    return {name for name, parameter in before if not torch.equal(parameter, after[name])}


def equal(left, right) -> bool:
    left, right = left.model.state_dict(), right.model.state_dict()
    return all(torch.equal(left[key], right[key]) for key in left)


# What changes ---------------------------------------------------------------------------------


def test_norms_head_and_decayed_weights_change_and_nothing_else(run):
    model = victim()
    convolutions = weights_of(model, nn.Conv2d)
    tuned = parameters_of(model, [*batch_norms(model), head(model)])
    found = changed(run())
    assert convolutions <= found <= convolutions | tuned
    assert parameters_of(model, [head(model)]) <= found
    assert found & parameters_of(model, batch_norms(model))


def test_without_weak_decay_no_convolution_changes(run):
    model = victim()
    found = changed(run(weak=0.0))
    assert found
    assert not found & weights_of(model, nn.Conv2d)


def test_without_steps_the_model_is_decayed_alone(run):
    purified = run(steps=0)
    assert changed(purified) == weights_of(victim(), nn.Conv2d)
    assert purified.steps == 0


def test_the_copy_does_not_come_back(run):
    """A strong decay is for the copy: where nothing is made of it, its strength says nothing."""
    assert equal(run(strong=0.1, least_misled=NEVER), run(strong=5.0, least_misled=NEVER))
    assert not equal(run(weak=0.1, least_misled=NEVER), run(weak=1.0, least_misled=NEVER))


@pytest.mark.parametrize("weak", [0.0, 0.05])
def test_with_group_norm_the_head_and_decayed_weights_change(run, weak):
    model = victim("group")
    assert not batch_norms(model)
    purified = run("group", weak=weak)
    wanted = parameters_of(model, [head(model)])
    assert changed(purified, "group") == wanted | (weights_of(model, nn.Conv2d) if weak else set())
    assert norm_layers(model)
    assert torch.isfinite(purified.model(torch.rand(4, 3, SIZE, SIZE))).all()
    assert not purified.model.training


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_tuned_counts_batch_norms_and_head(run, kind):
    model = victim(kind)
    widths = [norm.num_features for norm in batch_norms(model)]
    linear = head(model)
    expected = 2 * sum(widths) + (linear.in_features + 1) * CLASSES
    purified = run(kind)
    assert purified.tuned == expected
    assert purified.steps == SHORT["steps"]


def test_norm_statistics_end_as_those_of_clean_images_whatever_tuning_left(run, monkeypatch):
    def forget(model, *arguments, **options):
        tuned = descend(model, *arguments, **options)
        for norm in batch_norms(model):
            norm.running_mean.add_(7)
        return tuned

    plain, descend = run(), ngf.descend
    monkeypatch.setattr(ngf, "descend", forget)
    assert equal(plain, run())


# Seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("least_misled", [0.0, NEVER])
def test_same_seed_same_bytes(run, least_misled):
    first, again = (run(least_misled=least_misled) for _ in range(2))
    assert equal(first, again)
    assert first.notes == again.notes
    assert not equal(first, run(least_misled=least_misled, seed=1))


# What was exposed, and what is made of it -----------------------------------------------------


def test_notes_are_a_share_and_a_class_or_none(run):
    notes = run().notes
    assert notes.keys() == {"misled", "suspected_target"}
    assert 0 <= notes["misled"] <= 1
    assert notes["suspected_target"] in {-1, *range(CLASSES)}


@pytest.fixture
def exposed(monkeypatch):
    """Put a finding in the place of the search; returns what the search was given."""
    given: dict = {}

    def put(target, misled):
        def expose(victims, copied, batches, **options):
            given.update(victims=victims, copied=copied, batches=list(batches), **options)
            moves_MCHW = torch.full((options["moves"], 3, SIZE, SIZE), 0.05)
            return Exposed(moves_MCHW, target, misled)

        monkeypatch.setattr(ngf, "expose", expose)
        return given

    return put


@pytest.mark.parametrize(
    ("target", "least_misled", "suspected"),
    [(1, 0.5, 1), (1, 0.4, 1), (1, 0.51, -1), (None, 0.4, -1), (0, 0.0, 0), (0, NEVER, -1)],
)
def test_a_target_is_suspected_where_enough_was_misled(
    run, exposed, target, least_misled, suspected
):
    exposed(target, 0.5)
    notes = run(least_misled=least_misled).notes
    assert notes == {"misled": 0.5, "suspected_target": suspected}


def test_where_too_little_was_misled_it_tunes_on_clean_images_alone(run):
    clean_alone = [run(least_misled=NEVER, reach=reach) for reach in (0.0, 4.0)]
    assert equal(*clean_alone)
    assert clean_alone[0].notes["suspected_target"] == -1
    with_moves = [run(least_misled=0.0, reach=reach) for reach in (0.0, 4.0)]
    assert not equal(*with_moves)


def test_the_search_gets_the_victim_before_and_after_its_weak_decay(run, exposed):
    given = exposed(None, 0.0)
    run(weak=0.5, strong=2.0, moves=3, search=5, radius=0.02)
    before, after = given["victims"]
    assert not changed_convolutions(before)
    assert changed_convolutions(after) == changed_convolutions(given["copied"])
    assert changed_convolutions(after) == weights_of(victim(), nn.Conv2d)
    last = weights(after) / weights(before)
    assert weights(given["copied"]) / weights(before) < last < 1  # the copy's decay is stronger
    assert len(given["batches"]) == given["steps"] == 5
    assert (given["moves"], given["radius"]) == (3, 0.02)
    run(weak=0.0)
    assert len(given["victims"]) == 1


def changed_convolutions(model) -> set[str]:
    before, after = dict(victim().named_parameters()), dict(model.named_parameters())
    names = weights_of(model, nn.Conv2d)
    return {name for name in names if not torch.equal(before[name], after[name])}


def weights(model) -> torch.Tensor:
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    return torch.stack([layer.weight.detach().square().sum() for layer in layers]).sum().sqrt()


def test_a_batch_is_shown_as_it_is_and_under_parts_of_the_moves():
    moves_MCHW = 0.02 * torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    x_NCHW, y_N = torch.full((64, 3, SIZE, SIZE), 0.5), torch.arange(64) % CLASSES
    show = ngf._moved(
        victim("group"), Exposed(moves_MCHW, 0, 1.0), 3.0, torch.Generator().manual_seed(0)
    )
    with show((x_NCHW, y_N)) as (shown_NCHW, shown_N):
        assert torch.equal(shown_NCHW[:64], x_NCHW)
        assert torch.equal(shown_N, y_N.repeat(2))
        move_ND = (shown_NCHW[64:] - 0.5).flatten(1)
    unit_MD = nn.functional.normalize(moves_MCHW.flatten(1))
    along_NM = move_ND @ unit_MD.T / moves_MCHW.flatten(1).norm(dim=1)
    part_N, which_N = along_NM.max(1)
    expected_ND = part_N[:, None] * moves_MCHW.flatten(1)[which_N]
    torch.testing.assert_close(move_ND, expected_ND, rtol=1e-3, atol=1e-5)
    assert set(which_N.tolist()) == {0, 1}
    assert 2.5 < part_N.max() <= 3.0001
    assert -1e-4 <= part_N.min() < 0.5


def test_moved_pixels_stay_pixels():
    show = ngf._moved(
        victim("group"), Exposed(torch.full((1, 3, SIZE, SIZE), 0.7), 0, 1.0), 3.0,
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    with show((torch.full((8, 3, SIZE, SIZE), 0.5), torch.zeros(8).long())) as (shown_NCHW, _):
        assert shown_NCHW.max() == 1


@pytest.mark.parametrize("moved", [True, False])
def test_norm_statistics_follow_the_clean_images_of_each_batch(moved):
    model, other = victim(), victim()
    x_NCHW, y_N = torch.rand(16, 3, SIZE, SIZE), torch.arange(16) % CLASSES
    if moved:
        moves = Exposed(torch.full((1, 3, SIZE, SIZE), 0.3), 0, 1.0)
        show = ngf._moved(model, moves, 2.0, torch.Generator())
    else:
        show = ngf._followed(model)
    with show((x_NCHW, y_N)) as shown:
        assert len(shown[1]) == (32 if moved else 16)
        assert torch.equal(shown[0][:16], x_NCHW)
    norms.follow(other, x_NCHW, ngf.FOLLOW)
    found, expected = model.state_dict(), other.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    fresh = victim().state_dict()
    assert not all(torch.equal(found[key], fresh[key]) for key in fresh)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"moves": 0}, "moves must be at least 1, got 0"),
        ({"search": 0}, "search must be at least 1, got 0"),
        ({"views": 0}, "views must be at least 1, got 0"),
        ({"weak": -0.1}, "weak must be at least 0, got -0.1"),
        ({"strong": -1.0}, "strong must be at least 0, got -1"),
        ({"reach": -1.0}, "reach must be at least 0, got -1"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"radius": 0.0}, "radius must lie between 1e-06 and 1, got 0"),
        ({"lr": 1.5}, "lr must lie between 0 and 1, got 1.5"),
    ],
)
def test_numbers_that_cannot_be_are_said(run, change, said):
    with pytest.raises(InputError, match=said):
        run(**change)
