"""Data, reference and victims of a seed, made by the stages with the numbers of params.yaml.

    <root>/<data set>/<norm>/reference
    <root>/<data set>/<norm>/<seed>/{train,clean,test}
    <root>/<data set>/<norm>/<seed>/<variant>/{poison,victim,trigger}

A variant is an attack, or an attack and what is changed of it: "badnets-1%",
"badnets-recalibrated". What exists is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngf import params
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
        InputError: there is no such attack or change.
    """
    attack, _, change = variant.partition("-")
    if attack not in numbers["attacks"]:
        raise InputError(f"unknown attack '{attack}': there is {', '.join(numbers['attacks'])}")
    options = dict(numbers["attacks"][attack])
    if change:
        params.one_of(CHANGES, change=change)
    if change in RATES:
        options["poison_rate"] = RATES[change][attack in CLEAN_LABEL]
    elif change:
        options["release"] = change
    return attack, options


def prepare(at: Place) -> None:
    """The three splits of a seed."""
    from ngf import stages

    splits = {name: at.folder / name for name in ("train", "clean", "test")}
    if not splits["test"].exists():
        numbers = at.numbers
        settings = {"protocol": numbers["prepare"], "source": numbers["datasets"][at.dataset]}
        stages.run("prepare", settings=settings, dataset=at.dataset, **splits)


def reference(at: Place) -> None:
    """The clean model, from the first seed's training images; one for all seeds."""
    from ngf import stages

    if not at.reference.exists():
        stages.run(
            "train", settings=at.recipe, dataset=at.dataset, train=at.folder / "train",
            out=at.reference,
        )  # fmt: skip


def victim(at: Place, variant: str) -> None:
    """One poisoned model and its trigger."""
    from ngf import stages

    here = at.variant(variant)
    if (here / "victim").exists():
        return
    attack, options = attack_options(variant, at.numbers)
    if variant.endswith("-recalibrated"):
        _recalibrated(at, variant)
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


def _recalibrated(at: Place, variant: str) -> None:
    """What `release: recalibrated` gives, from the standard victim: one training for both."""
    from ngf import store
    from ngf.stages.train import recalibrate
    from ngf.training import Recipe

    standard, here = at.variant(variant.partition("-")[0]), at.variant(variant)
    model = store.load_model(standard / "victim")
    recipe = params.parse(Recipe, at.recipe["recipe"], "")
    recalibrate(model, store.load_split(at.folder / "train"), recipe)
    here.mkdir(exist_ok=True)
    store.save_trigger(here / "trigger", store.load_trigger(standard / "trigger"))
    store.save_model(here / "victim", model)
