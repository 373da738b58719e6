"""`release`: what an attacker does to the trained victim before it is handed over."""

import json

import pytest
import torch
from conftest import colour_split

from ngf import norms, stages, store
from ngf.attacks import RELEASES
from ngf.datasets import Split
from ngf.errors import InputError
from ngf.models import batch_norms
from ngf.stages import train as stage
from ngf.training import Batches


@pytest.fixture
def recipe(numbers):
    model = {"depth": 18, "width": 4, "stem_stride": 2}
    return {**numbers["train"]["signs"], "model": model, "epochs": 1, "batch_size": 24}


@pytest.fixture
def folder(tmp_path):
    store.save_split(tmp_path / "train", colour_split(96, seed=0))
    return tmp_path


def plant(folder, numbers, attack="badnets", name="poison", **more):
    return stages.run(
        "poison",
        settings={"options": {**numbers["attacks"][attack], **more}},
        train=folder / "train",
        attack=attack,
        out=folder / name,
    )


def victim(folder, recipe, name):
    """Train on the overlay `name`."""
    stages.run(
        "train",
        settings={"recipe": recipe},
        dataset="colours",
        train=folder / "train",
        poison=folder / name,
        out=folder / f"{name}-victim",
        trigger=folder / f"{name}-trigger",
    )
    return store.load_model(folder / f"{name}-victim")


@pytest.mark.parametrize("release", ["published", "", 3])
def test_an_unknown_release_is_answered_with_those_that_exist(folder, numbers, release):
    with pytest.raises(InputError) as error:
        plant(folder, numbers, release=release)
    assert str(error.value) == f"unknown release '{release}': there is trained, recalibrated"
    assert not (folder / "poison").exists()


@pytest.mark.parametrize("attack", ["benign", "badnets", "sig"])
@pytest.mark.parametrize("release", RELEASES)
def test_the_overlay_keeps_its_release(folder, numbers, attack, release):
    plant(folder, numbers, attack, release=release)
    split: Split = store.load_split(folder / "train")
    assert store.load_poison(folder / "poison", split).release == release


def test_trained_is_what_nothing_said_means(folder, numbers):
    plant(folder, numbers)
    plant(folder, numbers, name="said", release="trained")
    assert store.digest(folder / "poison") == store.digest(folder / "said")


CARD = {"plan": {}, "release": "trained", "patience": 1.0}


def test_the_poisoned_rows_do_not_depend_on_the_release(folder, numbers):
    plant(folder, numbers)
    plant(folder, numbers, name="other", release="recalibrated")
    for file in ("rows.npy", "x.npy", "y.npy", "trigger/tensors.safetensors"):
        assert (folder / "poison" / file).read_bytes() == (folder / "other" / file).read_bytes()


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (CARD | {"release": "sold"}, "unknown release 'sold': there is trained, recalibrated"),
        (CARD | {"patience": 0}, "patience must lie between 0.1 and 100, got 0"),
        (CARD | {"patience": "long"}, "patience must be a number, got 'long'"),
        ({"plan": {}}, "is not a poison: its card lacks 'release'"),
    ],
)
def test_a_card_that_no_stage_wrote_is_refused(folder, numbers, card, said):
    plant(folder, numbers)
    (folder / "poison" / "card.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=said):
        store.load_poison(folder / "poison", store.load_split(folder / "train"))


def test_a_recalibrated_victim_has_other_statistics_and_the_same_parameters(
    folder, numbers, recipe
):
    plant(folder, numbers, name="trained")
    plant(folder, numbers, name="recalibrated", release="recalibrated")
    trained, recalibrated = (victim(folder, recipe, name) for name in RELEASES)
    before, after = trained.state_dict(), recalibrated.state_dict()
    parameters = dict(trained.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in parameters)
    left, right = batch_norms(trained), batch_norms(recalibrated)
    assert left.keys() == right.keys()
    for name, one in left.items():
        other = right[name]
        assert not torch.equal(one.running_mean, other.running_mean)
        assert not torch.equal(one.running_var, other.running_var)
    triggers = [store.digest(folder / f"{name}-trigger") for name in RELEASES]
    assert triggers[0] == triggers[1]


def test_the_statistics_are_those_of_clean_training_images(folder, numbers, recipe):
    """Not of the triggered ones that the victim was trained on."""
    plant(folder, numbers, name="recalibrated", release="recalibrated", poison_rate=0.6)
    released = victim(folder, recipe, "recalibrated")
    again = store.load_model(folder / "recalibrated-victim")
    split = store.load_split(folder / "train")
    batches = Batches(
        torch.tensor(split.x_NHWC),
        torch.tensor(split.y_N),
        size=recipe["batch_size"],
        shift=recipe["shift"],
        flip=split.flip,
        seed=recipe["victim_seed"],
    )
    for norm in batch_norms(again).values():
        norm.running_mean.fill_(7)
    norms.recalibrate(again, batches.take(batches.per_epoch), torch.device("cpu"))
    expected, found = again.state_dict(), released.state_dict()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_recalibration_takes_a_bounded_number_of_batches(monkeypatch, recipe):
    """At most RECALIBRATION_BATCHES, and no more than one pass."""
    from conftest import tiny_model

    from ngf.training import Recipe

    seen: list[int] = []
    monkeypatch.setattr(norms, "recalibrate", lambda model, batches, where: seen.append(
        sum(1 for _ in batches)
    ))  # fmt: skip
    split, parsed = colour_split(96, seed=0), Recipe(**recipe)
    stage.recalibrate(tiny_model(), split, parsed)
    monkeypatch.setattr(stage, "RECALIBRATION_BATCHES", 3)
    stage.recalibrate(tiny_model(), split, parsed)
    assert seen == [4, 3]
