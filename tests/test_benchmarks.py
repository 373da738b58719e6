"""The benchmark's victims: a variant changes what its name says, and nothing else."""

import copy
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks import child, poisoning
from benchmarks.victims import VARIANTS
from ngf import params, plugins
from ngf.attacks import RELEASES, parted
from ngf.bench import victims
from ngf.errors import InputError
from ngf.training import Recipe


def flat(content, prefix=()) -> dict:
    """{path of keys: value} of nested sections."""
    if not isinstance(content, dict):
        return {prefix: content}
    found = {prefix: {}} if not content else {}
    for key, value in content.items():
        found |= flat(value, (*prefix, key))
    return found


def differing(before, after) -> dict:
    """{path: new value} where they differ; None where a key is gone."""
    before, after = flat(before), flat(after)
    paths = before.keys() | after.keys()
    return {p: after.get(p) for p in paths if before.get(p) != after.get(p)}


@pytest.mark.parametrize(
    ("variant", "attack", "change"),
    [
        ("benign", "benign", {}),
        ("badnets", "badnets", {}),
        ("sig", "sig", {}),
        ("badnets-0.5%", "badnets", {"poison_rate": 0.005}),
        ("badnets-1%", "badnets", {"poison_rate": 0.01}),
        ("blend-5%", "blend", {"poison_rate": 0.05}),
        # A clean-label budget is a share of its class.
        ("sig-0.5%", "sig", {"poison_rate": 0.05}),
        ("sig-1%", "sig", {"poison_rate": 0.1}),
        ("sig-5%", "sig", {"poison_rate": 0.4}),
        ("blend-recalibrated", "blend", {"release": "recalibrated"}),
        ("sig-recalibrated", "sig", {"release": "recalibrated"}),
    ],
)
def test_a_variant_changes_what_its_name_says(variant, attack, change, numbers):
    before = copy.deepcopy(numbers)
    assert victims.attack_options(variant, numbers) == (
        attack,
        {**numbers["attacks"][attack], **change},
    )
    assert numbers == before


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_an_attack_with_its_options(variant, numbers):
    attack, options = victims.attack_options(variant, numbers)
    own, common = parted(options)
    assert common.get("release", "trained") in RELEASES
    params.options(plugins.load("attacks", attack).plant, own, variant)


def test_clean_label_attacks_are_those_whose_budget_is_a_share_of_the_class():
    kinds = ("clean_label", "class_rows")
    found = {
        name
        for name in plugins.names("attacks")
        if any(hasattr(plugins.load("attacks", name), kind) for kind in kinds)
    }
    assert set(victims.CLEAN_LABEL) == found


def test_an_unknown_attack_is_no_variant(numbers):
    with pytest.raises(InputError, match="unknown attack 'smoke'"):
        victims.attack_options("smoke-1%", numbers)
    with pytest.raises(InputError, match="recalibrated"):
        victims.attack_options("badnets-2%", numbers)
    with pytest.raises(InputError, match="'lira' has no poison_rate"):
        victims.attack_options("lira-5%", numbers)


DATASETS = [name for name in plugins.names("datasets") if name != "folder"]
WHERE = {"train": "train", "source": "datasets"}  # sections that `bench.<data set>` speaks of


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_settings_change_seeds_and_what_the_section_says_alone(dataset, norm, numbers, tmp_path):
    before = copy.deepcopy(numbers)
    found = victims.place(numbers, dataset, seed=17, norm=norm, root=tmp_path).numbers
    assert numbers == before
    changed = differing(numbers, found)
    own = copy.deepcopy(numbers["bench"].get(dataset) or {})
    model = own.setdefault("train", {}).pop("model", numbers["train"][dataset]["model"])
    wanted = {("train", dataset, "model", key): v for key, v in {**model, "norm": norm}.items()}
    for section, content in own.items():
        path = (WHERE[section], dataset) if section in WHERE else (section,)
        wanted |= flat(content, path)
    wanted = {path: value for path, value in wanted.items() if value != {}}
    seeds = {("prepare", "seed"), ("train", dataset, "victim_seed")}
    seeds |= {("attacks", name, "seed") for name, o in numbers["attacks"].items() if "seed" in o}
    gone = changed.keys() - flat(found).keys()
    assert changed.keys() - gone <= wanted.keys() | seeds
    assert all(path[:3] == ("train", dataset, "model") for path in gone)
    assert all(changed[path] == 17 for path in seeds)
    there = flat(found)
    assert all(there[path] == value for path, value in wanted.items())
    # The clean split and the search for it stay; so does the reference's seed.
    assert found["defenses"] == numbers["defenses"]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_recipe_builds(dataset, norm, numbers, tmp_path):
    at = victims.place(numbers, dataset, seed=0, norm=norm, root=tmp_path)
    parsed = params.parse(Recipe, at.recipe["recipe"], "")
    options = params.options(plugins.load("models", parsed.arch).build, parsed.model, "")
    assert options["norm" if parsed.arch != "named" else "name"]


# Poisoning ---------------------------------------------------------------------------------------


ADDED = """
from benchmarks import child
from ngf.bench.memory import peak_resident

def added(size, earlier):
    gone = b"x" * earlier
    del gone
    before = peak_resident(anew=True)
    block = b"x" * size
    del block
    return peak_resident() - before

print(child.forked(added, 60_000_000, 200_000_000))
"""


def test_the_peak_counts_what_was_there_for_a_moment():
    """After a larger one. In a fresh interpreter: an allocator that has run hundreds of tests may
    hand out memory that it never gave back."""
    done = subprocess.run([sys.executable, "-c", ADDED], cwd=ROOT, capture_output=True, text=True)
    assert 50e6 < int(done.stdout or 0) < 70e6, done.stderr


def refused() -> None:
    raise InputError("no such victim")


def died() -> None:
    os._exit(1)


def test_the_error_of_a_child_arrives():
    with pytest.raises(InputError, match="no such victim"):
        child.forked(refused)
    with pytest.raises(RuntimeError, match="the run's process died"):
        child.forked(died)


@pytest.mark.parametrize(("attack", "rows"), [("badnets", 40), ("lira", 0)])
def test_a_row_of_the_table_of_costs(attack, rows, numbers, monkeypatch):
    monkeypatch.setattr(poisoning, "IMAGES", 400)
    poison, seconds, rewriting, peak = poisoning.planted(attack, numbers)
    assert len(poison.rows_P) == rows
    assert (rewriting > 0) == (rows > 0)
    assert seconds >= rewriting
    assert peak >= 0
    monkeypatch.setattr(poisoning, "BATCH", 16)
    assert poisoning.step_ratio(poison, width=4, steps=4) > 0.1
