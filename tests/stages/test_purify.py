"""What the stage does around a defense: the trail it keeps, and what makes it safe to use."""

import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from _workplace import Workplace, victim
from conftest import CLASSES, colour_split

from ngf import device, holdout, plugins, store, trail
from ngf.defenses import Clean, Purified
from ngf.errors import InputError
from ngf.models import batch_norms, head

STEPS = 8
SPLIT = colour_split(48, seed=1)


@pytest.fixture
def workplace(tmp_path, numbers) -> Workplace:
    return Workplace(tmp_path, numbers)


@pytest.fixture
def defend(monkeypatch):
    """Put a function in the place of the defense `none`."""
    load = plugins.load

    def put(purify) -> None:
        stand_in = types.SimpleNamespace(purify=purify)
        monkeypatch.setattr(
            plugins, "load", lambda room, name: stand_in if name == "none" else load(room, name)
        )

    return put


def confuse(model, clean):
    """Turn the head's rows step by step into their neighbours': past the middle ACC is lost."""
    layer = head(model)
    start_CD = layer.weight.detach().clone()
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            layer.weight.copy_(torch.lerp(start_CD, start_CD.roll(1, 0), step / STEPS))
        trail.mark(model, step, STEPS)
    return Purified(model, layer.weight.numel(), STEPS)


def held_out_accuracy(folder) -> float:
    _, held = holdout.divide(SPLIT, 0.25, seed=0)
    where = device.pick()
    x_NHWC, y_N = torch.tensor(held.x_NHWC, device=where), torch.tensor(held.y_N, device=where)
    return holdout.accuracy(store.load_model(folder).to(where), Clean(x_NHWC, y_N, flip=True))


def weights(folder) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


# The trail ------------------------------------------------------------------------------------


@pytest.mark.parametrize("defense", ["finetune", "ft_sam"])
def test_a_trail_changes_no_byte_of_the_model(workplace, numbers, defense):
    options = {**numbers["defenses"][defense], "epochs": 2, "batch_size": 16}
    workplace.purify(defense, options=options, out="plain")
    workplace.purify(defense, options=options, out="out", snapshots=3)
    assert weights(workplace.folder / "plain") == weights(workplace.folder / "out")
    assert weights(workplace.folder / "plain") != weights(workplace.folder / "victim")
    files = sorted(file.name for file in (workplace.folder / "out" / "trail").iterdir())
    assert files == ["000002.safetensors", "000004.safetensors", "000006.safetensors"]
    assert not (workplace.folder / "plain" / "trail").exists()


def test_a_defense_without_steps_leaves_no_trail(workplace):
    workplace.purify("none", options={}, snapshots=4)
    assert not (workplace.folder / "out" / "trail").exists()


def test_a_stored_trail_is_laid_over_the_stored_model(workplace, defend):
    """Also where the defense goes on after its last mark, as those do that recalibrate."""

    def confuse_afterwards(model, clean):
        head(model).bias.data.add_(1)
        trail.mark(model, 1, 1)
        head(model).weight.data.copy_(head(model).weight.roll(1, 0))
        return Purified(model, 1, 1)

    defend(confuse_afterwards)
    workplace.purify("none", options={}, snapshots=1)
    stored = store.load_model(workplace.folder / "out")
    ((_, tensors),) = store.load_trail(workplace.folder / "out")
    found, expected = head(trail.overlay(stored, tensors)), head(victim())
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.bias, expected.bias + 1)


# The check of ACC -----------------------------------------------------------------------------


def test_the_defense_gets_what_is_not_held_out(workplace, defend):
    seen = []

    def look(model, clean):
        seen.append(clean)
        return Purified(model, 0, 0)

    defend(look)
    workplace.purify("none", options={}, holdout=0.25)
    kept, held = holdout.divide(SPLIT, 0.25, workplace.numbers["purify"]["seed"])
    assert np.array_equal(seen[0].x_NHWC.cpu().numpy(), kept.x_NHWC)
    assert np.array_equal(seen[0].y_N.cpu().numpy(), kept.y_N)
    assert workplace.report()["holdout_images"] == len(held.y_N) == 12
    workplace.purify("none", options={}, holdout=0.0)
    assert np.array_equal(seen[1].x_NHWC.cpu().numpy(), SPLIT.x_NHWC)
    assert "holdout_images" not in workplace.report()


def test_held_out_images_are_a_stratified_seeded_part():
    kept, held = holdout.divide(SPLIT, 0.25, seed=0)
    assert np.bincount(held.y_N).tolist() == [4] * CLASSES
    images = {image.tobytes() for part in (kept, held) for image in part.x_NHWC}
    assert images == {image.tobytes() for image in SPLIT.x_NHWC}
    assert len(kept.y_N) + len(held.y_N) == len(SPLIT.y_N)
    again, other = (holdout.divide(SPLIT, 0.25, seed)[1].x_NHWC for seed in (0, 1))
    assert np.array_equal(held.x_NHWC, again)
    assert not np.array_equal(held.x_NHWC, other)


def test_a_drop_within_the_limit_says_nothing(workplace, defend, capsys):
    defend(confuse)
    outcome = workplace.purify("none", options={}, holdout=0.25, max_acc_drop=1.0)
    assert "held-out" not in outcome.message
    assert capsys.readouterr().err == ""
    report = workplace.report()
    assert report["holdout_acc_before"] == held_out_accuracy(workplace.folder / "victim") >= 0.9
    assert report["holdout_acc_after"] == held_out_accuracy(workplace.folder / "out") < 0.5


def test_a_larger_drop_is_said_once_and_the_model_kept(workplace, defend, capsys):
    defend(confuse)
    outcome = workplace.purify("none", options={}, holdout=0.25, on_drop="warn")
    report = workplace.report()
    fell = f"fell from {report['holdout_acc_before']:.1%} to {report['holdout_acc_after']:.1%}"
    assert f"ACC on 12 held-out images {fell}, more than max_acc_drop 5.0%" in outcome.message
    said = capsys.readouterr().err
    assert said.startswith("warning: none: ACC on 12 held-out images fell")
    assert said.count("\n") == 1
    assert held_out_accuracy(workplace.folder / "out") < 0.5
    assert "stepped_back_to" not in report


@pytest.mark.parametrize("snapshots", [0, STEPS])
def test_stepping_back_takes_the_latest_model_that_passes(workplace, defend, capsys, snapshots):
    defend(confuse)
    outcome = workplace.purify(
        "none", options={}, holdout=0.25, on_drop="step_back", snapshots=snapshots
    )
    report = workplace.report()
    step = report["stepped_back_to"]
    assert 0 < step < STEPS
    assert f"stepped back to step {step} (" in outcome.message
    assert "stepped back" in capsys.readouterr().err
    before, after = report["holdout_acc_before"], report["holdout_acc_after"]
    assert before - after <= 0.05
    assert after == held_out_accuracy(workplace.folder / "out")
    assert before - report["holdout_acc_refused"] > 0.05
    # The weights are those of that step, and the next step would not have passed.
    victim = store.load_model(workplace.folder / "victim")
    start_CD = head(victim).weight.detach()
    found_CD = head(store.load_model(workplace.folder / "out")).weight
    assert torch.equal(found_CD, torch.lerp(start_CD, start_CD.roll(1, 0), step / STEPS))
    with torch.no_grad():
        later_CD = torch.lerp(start_CD, start_CD.roll(1, 0), (step + 1) / STEPS)
        head(victim).weight.copy_(later_CD)
    store.save_model(workplace.folder / "later", victim)
    assert before - held_out_accuracy(workplace.folder / "later") > 0.05
    assert (workplace.folder / "out" / "trail").exists() == bool(snapshots)


def test_where_no_model_along_the_way_passes_the_victim_comes_back(workplace, defend, capsys):
    def break_at_once(model, clean):
        with torch.no_grad():
            head(model).weight.copy_(head(model).weight.roll(1, 0))
        trail.mark(model, 1, 1)
        return Purified(model, 1, 1)

    defend(break_at_once)
    outcome = workplace.purify("none", options={}, holdout=0.25, on_drop="step_back")
    assert "stepped back to THE VICTIM: no snapshot passed" in outcome.message
    assert "THE VICTIM" in capsys.readouterr().err
    assert weights(workplace.folder / "out") == weights(workplace.folder / "victim")
    assert workplace.report()["stepped_back_to"] == 0


def test_a_snapshot_with_infinite_weights_is_never_stepped_back_to(workplace, defend):
    def overshoot(model, clean):
        """Step 1 is the victim with a broken buffer, which costs it little ACC."""
        norm, layer = next(iter(batch_norms(model).values())), head(model)
        norm.running_var[0] = torch.inf
        trail.mark(model, 1, 2)
        norm.running_var[0] = 1
        layer.weight.data.copy_(layer.weight.data.roll(1, 0))
        trail.mark(model, 2, 2)
        return Purified(model, 1, 2)

    defend(overshoot)
    workplace.purify(
        "none", options={}, holdout=0.25, on_drop="step_back", max_acc_drop=0.5, snapshots=2
    )
    assert workplace.report()["stepped_back_to"] == 0


def test_a_drop_of_exactly_the_limit_passes():
    x_NHWC, y_N = torch.tensor(SPLIT.x_NHWC[:20]), torch.tensor(SPLIT.y_N[:20])
    guard = holdout.Guard(victim(), Clean(x_NHWC, y_N, True), limit=0.05)
    guard.before = 1.0
    assert 1.0 - 0.95 > 0.05  # in floats
    assert guard._passes(0.95)
    assert not guard._passes(0.9)


# What is refused ------------------------------------------------------------------------------


def refused(workplace, *arguments, **keywords) -> str:
    """The error's one line; nothing was written."""
    before = sorted(workplace.folder.rglob("*"))
    with pytest.raises(InputError) as error:
        workplace.purify(*arguments, **keywords)
    assert sorted(workplace.folder.rglob("*")) == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ({"holdout": 0.6}, "holdout must lie between 0 and 0.5, got 0.6"),
        ({"holdout": -0.1}, "holdout must lie between 0 and 0.5, got -0.1"),
        ({"max_acc_drop": 5.0}, "max_acc_drop must lie between 0 and 1, got 5"),
        ({"snapshots": -1}, "snapshots must be at least 0, got -1"),
        ({"snapshots": 2.5}, "purify.snapshots: 2.5 is not int"),
        ({"on_drop": "panic"}, "unknown on_drop 'panic': there is warn, step_back"),
        ({"holdout": 0.01}, "--holdout): a fraction of 0.01 takes 0 of the 16 images"),
    ],
)
def test_bad_settings_are_one_line(workplace, protocol, said):
    assert said in refused(workplace, **protocol)


def test_a_holdout_that_leaves_a_class_without_images_is_refused(workplace):
    lone = np.append(np.flatnonzero(SPLIT.y_N != 2), np.flatnonzero(SPLIT.y_N == 2)[0])
    few = replace(SPLIT, x_NHWC=SPLIT.x_NHWC[lone], y_N=SPLIT.y_N[lone])
    store.remove(workplace.folder / "clean")
    store.save_split(workplace.folder / "clean", few)
    assert "class 'channel2' has 1 clean image" in refused(workplace, holdout=0.5)
    workplace.purify(holdout=0.0)


def test_weights_that_are_not_finite_are_refused_with_a_remedy(workplace):
    said = refused(workplace, options={**workplace.options, "lr": 1e30})
    assert "defense 'finetune' diverged" in said
    assert "lower lr (now 1e+30)" in said
    assert "damping" not in said


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_buffers_that_are_not_finite_are_refused(workplace, defend, value):
    def corrupt(model, clean):
        next(iter(batch_norms(model).values())).running_var[0] = value
        return Purified(model, 0, 0)

    defend(corrupt)
    said = refused(workplace, "none", options={})
    assert "defense 'none' diverged: net." in said
    assert "running_var is not finite" in said
