"""Data, reference and victims of a seed, made by the stages with the numbers of params.yaml.

    <root>/<data set>/<norm>/reference
    <root>/<data set>/<norm>/<seed>/{train,clean,test}
    <root>/<data set>/<norm>/<seed>/<variant>/{poison,victim,trigger}

A variant is an attack, or an attack and what is changed of it: "badnets-1%",
"badnets-recalibrated". What exists is kept; beside it stands with which numbers it was made, and
where these are no longer today's that is an error and not a silent mixture.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngf import params, store
from ngf.errors import InputError

# A budget by its share of the training set. A clean-label budget is a share of its class, which is
# a tenth or a sixteenth of the images.
CLEAN_LABEL = ("sig", "clb")
RATES = {"0.5%": (0.005, 0.05), "1%": (0.01, 0.1), "5%": (0.05, 0.4)}
CHANGES = (*RATES, "recalibrated")


@dataclass(frozen=True)
class Place:
    """One data set, norm and seed below a root; `numbers` are params.yaml's, made its own."""

    root: Path
    dataset: str
    norm: str
    seed: int
    numbers: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.root / self.dataset / self.norm / str(self.seed)

    @property
    def reference(self) -> Path:
        return self.root / self.dataset / self.norm / "reference"

    @property
    def recipe(self) -> dict[str, Any]:
        return {"recipe": self.numbers["train"][self.dataset]}

    def variant(self, name: str) -> Path:
        return self.folder / name


def place(
    numbers: Mapping[str, Any],
    dataset: str,
    *,
    seed: int,
    norm: str = "batch",
    root: Path,
    raw: Path | None = None,
) -> Place:
    """The project's numbers with one seed for split, attack and victim.

    Args:
        numbers: all of params.yaml; its section `bench` says where a data set's numbers differ.
        raw: where the raw images lie, instead of what `datasets` says.
    """
    if dataset not in numbers["datasets"]:
        raise InputError(f"unknown data set '{dataset}': there is {', '.join(numbers['datasets'])}")
    mine: dict[str, Any] = copy.deepcopy(dict(numbers))
    own = mine["bench"].get(dataset) or {}
    mine["prepare"] |= {"seed": seed, **own.get("prepare", {})}
    mine["datasets"][dataset] |= own.get("source", {})
    if raw is not None:
        mine["datasets"][dataset]["root"] = str(raw)
    recipe = mine["train"][dataset]
    recipe |= own.get("train", {})
    recipe["model"] = {**recipe["model"], "norm": norm}
    recipe["victim_seed"] = seed
    for attack in mine["attacks"].values():
        if "seed" in attack:
            attack["seed"] = seed
    return Place(root, dataset, norm, seed, mine)


def attack_options(variant: str, numbers: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(attack, its section) of a variant.

    Raises:
        InputError: there is no such attack or change, or the attack has no rate of its own.
    """
    attack, _, change = variant.partition("-")
    if attack not in numbers["attacks"]:
        raise InputError(f"unknown attack '{attack}': there is {', '.join(numbers['attacks'])}")
    options = dict(numbers["attacks"][attack])
    if change:
        params.one_of(CHANGES, change=change)
    if change in RATES:
        if "poison_rate" not in options:
            raise InputError(f"'{variant}': attack '{attack}' has no poison_rate to change")
        options["poison_rate"] = RATES[change][attack in CLEAN_LABEL]
    elif change:
        options["release"] = change
    return attack, options


def prepare(at: Place) -> None:
    """The three splits of a seed."""
    from ngf import stages

    splits = {name: at.folder / name for name in ("train", "clean", "test")}
    numbers = at.numbers
    settings = {"protocol": numbers["prepare"], "source": numbers["datasets"][at.dataset]}
    # Where the raw images lie says nothing of what they are.
    told = {**settings, "source": {k: w for k, w in settings["source"].items() if k != "root"}}
    if not _made(splits["test"], told):
        stages.run("prepare", settings=settings, dataset=at.dataset, **splits)
        _note(splits["test"], told)


def reference(at: Place) -> None:
    """The clean model, from the first seed's training images; one for all seeds."""
    from ngf import stages

    recipe = {key: value for key, value in at.recipe["recipe"].items() if key != "victim_seed"}
    if not _made(at.reference, recipe):
        stages.run(
            "train", settings=at.recipe, dataset=at.dataset, train=at.folder / "train",
            out=at.reference,
        )  # fmt: skip
        _note(at.reference, recipe)


def victim(at: Place, variant: str) -> None:
    """One poisoned model and its trigger."""
    from ngf import stages

    here = at.variant(variant)
    attack, options = attack_options(variant, at.numbers)
    told = {"attack": attack, "options": options, **at.recipe}
    if _made(here / "victim", told):
        return
    if variant.endswith("-recalibrated"):
        _recalibrated(at, variant)
        _note(here / "victim", told)
        return
    if not (here / "poison").exists():
        stages.run(
            "poison", settings={"options": options}, train=at.folder / "train", attack=attack,
            out=here / "poison",
        )  # fmt: skip
    stages.run(
        "train", settings=at.recipe, dataset=at.dataset, train=at.folder / "train",
        poison=here / "poison", out=here / "victim", trigger=here / "trigger",
    )  # fmt: skip
    _note(here / "victim", told)


def _made(thing: Path, told: Mapping[str, Any]) -> bool:
    """Whether the thing is there, made with these numbers.

    Raises:
        InputError: it was made with others.
    """
    if not thing.exists():
        return False
    file = _beside(thing)
    known = store.read_json(file) if file.exists() else {}
    if known != json.loads(json.dumps(told)):
        raise InputError(
            f"{thing} was made with other numbers than today's: delete it, or name another --root"
        )
    return True


def _note(thing: Path, told: Mapping[str, Any]) -> None:
    store.write_json(_beside(thing), told)


def _beside(thing: Path) -> Path:
    return thing.with_name(f"{thing.name}.made.json")


def _recalibrated(at: Place, variant: str) -> None:
    """What `release: recalibrated` gives, from the standard victim: one training for both."""
    from ngf.stages.train import recalibrate
    from ngf.training import Recipe

    standard, here = at.variant(variant.partition("-")[0]), at.variant(variant)
    model = store.load_model(standard / "victim")
    recipe = params.parse(Recipe, at.recipe["recipe"], "")
    recalibrate(model, store.load_split(at.folder / "train"), recipe)
    here.mkdir(exist_ok=True)
    store.save_trigger(here / "trigger", store.load_trigger(standard / "trigger"))
    store.save_model(here / "victim", model)
