"""Victims for the tables: trained once into runs/bench, kept out of git, re-made by one command.

    python -m benchmarks.victims --dataset signs --seeds 0 1 2

Everything goes through the stages with the numbers of params.yaml; a variant changes only what its
name says. What exists is kept, so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path("runs/bench")
# A budget by its share of the training set. A clean-label budget is a share of its class, which is
# a tenth or a sixteenth of the images.
CLEAN_LABEL = ("sig", "clb")
RATES = {"0.5%": (0.005, 0.05), "1%": (0.01, 0.1), "5%": (0.05, 0.4)}
VARIANTS = (
    "benign",
    *(
        f"{a}{change}"
        for a in ("badnets", "blend", "sig")
        for change in ("", "-1%", "-recalibrated")
    ),
)
NARROW = {"depth": 18, "width": 16, "stem_stride": 2}
NETS = {  # what `train.<dataset>` becomes; the numbers beside it are params.yaml's
    "signs": {"model": NARROW},
    "cifar10": {"model": NARROW},
    "gtsrb": {"model": NARROW},
    "tiny_imagenet": {"model": {**NARROW, "stem_stride": 4}},
    "imagenet": {
        "arch": "preact_resnet",
        "model": {**NARROW, "stem_stride": 4},
        "epochs": 200,
        "batch_size": 64,
        "shift": 20,
        "lr": 0.1,
        "weight_decay": 0.0005,
        "start": None,
    },
}
# Of these two the real images at hand are a part: 50 classes; 10 classes of 100 images.
IMAGES = {
    "tiny_imagenet": {"partial": True},
    "imagenet": {"partial": True, "image_size": 160},
}
CLEAN = {"imagenet": 0.1}  # a hundredth of a class would be one image


def settings(dataset: str, seed: int, norm: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """The project's numbers with one seed for split, attack and victim."""
    numbers = copy.deepcopy(numbers)
    numbers["prepare"]["seed"] = seed
    numbers["prepare"]["clean_fraction"] = CLEAN.get(dataset, numbers["prepare"]["clean_fraction"])
    numbers["datasets"][dataset] |= IMAGES.get(dataset, {})
    recipe = numbers["train"][dataset]
    recipe |= NETS[dataset]
    recipe["model"] = {**recipe["model"], "norm": norm}
    recipe["victim_seed"] = seed
    for attack in numbers["attacks"].values():
        if "seed" in attack:
            attack["seed"] = seed
    return numbers


def attack_options(variant: str, numbers: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(attack, its section) for "badnets", "badnets-1%" or "badnets-recalibrated".

    Any attack of params.yaml will do.
    """
    attack, _, change = variant.partition("-")
    options = dict(numbers["attacks"][attack])
    if change in RATES:
        options["poison_rate"] = RATES[change][attack in CLEAN_LABEL]
    elif change:
        options["release"] = change
    return attack, options


def make(
    dataset: str,
    seed: int,
    norm: str,
    variants: Iterable[str],
    root: Path = ROOT,
    raw: Path | None = None,
) -> Path:
    """Data, reference and victims of one seed under root/<dataset>/<norm>/<seed>."""
    from ngf import params, stages

    numbers = settings(dataset, seed, norm, params.read(Path("params.yaml")))
    if raw is not None:
        numbers["datasets"][dataset]["root"] = str(raw)
    here = root / dataset / norm / str(seed)
    recipe = {"recipe": numbers["train"][dataset]}
    data = {name: here / name for name in ("train", "clean", "test")}
    if not data["test"].exists():
        sections = {"protocol": numbers["prepare"], "source": numbers["datasets"][dataset]}
        stages.run("prepare", settings=sections, dataset=dataset, **data)
    reference = root / dataset / norm / "reference"
    if not reference.exists():
        _timed("train", settings=recipe, dataset=dataset, train=data["train"], out=reference)
    for variant in variants:
        place = here / variant
        if (place / "victim").exists():
            continue
        if variant.endswith("-recalibrated"):
            _recalibrated(here, variant, recipe)
            continue
        attack, options = attack_options(variant, numbers)
        if not (place / "poison").exists():
            stages.run(
                "poison",
                settings={"options": options},
                train=data["train"],
                attack=attack,
                out=place / "poison",
            )
        _timed(
            "train",
            settings=recipe,
            dataset=dataset,
            train=data["train"],
            poison=place / "poison",
            out=place / "victim",
            trigger=place / "trigger",
        )
    return here


def _recalibrated(here: Path, variant: str, recipe: dict[str, Any]) -> None:
    """What `release: recalibrated` gives, from the standard victim: one training for both."""
    from ngf import params, store
    from ngf.stages.train import recalibrate
    from ngf.training import Recipe

    standard, place = here / variant.partition("-")[0], here / variant
    model = store.load_model(standard / "victim")
    recalibrate(model, store.load_split(here / "train"), params.parse(Recipe, recipe["recipe"], ""))
    place.mkdir(exist_ok=True)
    store.save_trigger(place / "trigger", store.load_trigger(standard / "trigger"))
    store.save_model(place / "victim", model)


def _timed(stage: str, **arguments: Any) -> None:
    from ngf import stages

    started = time.perf_counter()
    outcome = stages.run(stage, **arguments)
    print(
        f"{arguments['out']}: {outcome.message}, {time.perf_counter() - started:.0f} s", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, choices=sorted(NETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--norm", default="batch", choices=["batch", "group"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--raw", type=Path, help="where the data set's raw files lie")
    given = parser.parse_args()
    for seed in given.seeds:
        make(given.dataset, seed, given.norm, given.variants, given.root, given.raw)


if __name__ == "__main__":
    main()
