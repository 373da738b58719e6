"""The tables of docs/results.md: every defense and every part of `ngf` on runs/bench's victims.

    python -m benchmarks.victims --dataset signs
    python -m benchmarks.ablation --dataset signs --sets table parts --out docs/results/signs.json

Measured on the test split. A row that the file holds already is kept, so an interrupted call goes
on where it stopped. Nothing here chooses a setting: params.yaml does, and every row but the plain
ones says what it changes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.victims import ROOT, VARIANTS

if TYPE_CHECKING:
    from ngf.bench.victims import Place
    from ngf.datasets import Split
    from ngf.defenses import Purified


class Cell(NamedTuple):
    """label: what the row is called. options: what it changes of params.yaml's section."""

    label: str
    defense: str
    options: Mapping[str, Any] = {}
    clean_share: float = 1.0  # of the clean split, or more: then with training images


NO_MIXTURES = {"mixed_lead": 1.0, "mixed_gap": 1.0, "answered": 0.0}
NO_LATE = {"waves": 0.0, "styles": 0.0, "classes": 0.0}  # looks
FIRST = {"least_gap": 1.0, "search": 1, **NO_LATE, **NO_MIXTURES}  # no suspicion
NO_FIRST = {"weak": 0.0, "damp": 0.0}
DEFENSES = (
    "none", "finetune", "finetune_head", "ft_sam", "ngf_strict", "ngf_released", "ngf",
)  # fmt: skip
SETS: dict[str, Sequence[Cell]] = {
    "table": [Cell(name, name) for name in DEFENSES],
    "ngf": [Cell("none", "none"), Cell("ngf", "ngf")],
    "parts": [
        Cell("strict: head alone", "ngf_strict"),
        Cell("strict, recalibrated", "ngf_strict", {"recalibrate": True}),
        Cell("first sieve alone, inputs only", "ngf", {**FIRST, "steps": 0, "damp": 0.0}),
        Cell("first sieve alone, channels only", "ngf", {**FIRST, "steps": 0, "weak": 0.0}),
        Cell("first sieve alone", "ngf", {**FIRST, "steps": 0}),
        Cell("clean natural gradient alone", "ngf", {**FIRST, **NO_FIRST}),
        Cell("first sieve + clean natural gradient", "ngf", FIRST),
        Cell("second sieve alone", "ngf", {**NO_FIRST, "steps": 0}),
        Cell("both sieves, no gradient", "ngf", {"steps": 0}),
        Cell("all, no first sieve", "ngf", NO_FIRST),
        Cell("all, head alone tuned", "ngf", {"layers": "head"}),
        Cell("all, norms alone tuned", "ngf", {"layers": "norms"}),
        Cell("all, nothing moved in the end", "ngf", {"share": 0.0}),
        Cell("all, no mixtures", "ngf", NO_MIXTURES),
        Cell("all, no warps", "ngf", {"warps": 0.0}),
        Cell("all, no waves", "ngf", {"waves": 0.0}),
        Cell("all", "ngf"),
        Cell("all, labels alone (trust 0)", "ngf", {"trust": 0.0}),
        Cell("all, victim's answers alone (trust 1)", "ngf", {"trust": 1.0}),
        Cell("all, anchor 0", "ngf", {"eta": 0.0}),
        Cell("all, gradient descent (fisher identity)", "ngf", {"fisher": "identity"}),
    ],
    "fisher": [
        Cell(f"strict, recalibrated, {fisher}", "ngf_strict",
             {"recalibrate": True, "fisher": fisher})
        for fisher in ("true", "empirical", "kfac", "ekfac", "diagonal", "identity")
    ],
    "eta": [Cell(f"eta {eta:g}", "ngf", {"eta": eta}) for eta in (0.01, 0.1, 1.0, 10.0)],
    "damping": [
        Cell(f"damping {damping:g}", "ngf", {"damping": damping})
        for damping in (0.01, 0.1, 1.0, 10.0, 100.0)
    ],
    "views": [Cell(f"views {views}", "ngf", {"views": views}) for views in (1, 4, 16)],
    "clean": [
        Cell(f"clean split {share:g}%", "ngf", {}, share) for share in (0.2, 0.5, 1.0, 2.0, 5.0)
    ],
}  # fmt: skip


def rows(at: Place, variant: str, cells: Sequence[Cell]) -> Iterator[dict]:
    """One row a cell for a victim, with its victim's and the reference's measures."""
    import torch

    from ngf import device, metrics, store, visibility
    from ngf.images import on_device

    where = device.deterministic(0)
    test = store.load_split(at.folder / "test")
    trigger = store.load_trigger(at.variant(variant) / "trigger")
    x_NHWC = on_device(test.x_NHWC, where)
    y_N = torch.tensor(test.y_N, device=where)
    known = {
        "victim": store.load_model(at.variant(variant) / "victim").to(where),
        "reference": store.load_model(at.reference).to(where),
    }
    before = metrics.measure(known, x_NHWC, y_N, trigger, len(test.classes))
    images_2 = visibility.pairs(trigger, x_NHWC, y_N)
    seen = visibility.visibility(*images_2) if len(images_2[0]) else {}
    for cell in cells:
        purified, seconds = purify(at, variant, cell)
        after = metrics.measure({"model": purified.model}, x_NHWC, y_N, trigger, len(test.classes))
        values = {
            f"{whose}_{key}": None if found is None else round(100 * found["value"], 2)
            for whose, three in {**before, **after}.items()
            for key, found in three.items()
        }
        yield {
            "dataset": at.dataset, "norm": at.norm, "seed": at.seed, "variant": variant,
            "label": cell.label, **values, "seconds": round(seconds, 1),
            "tuned": purified.tuned, "steps": purified.steps, **purified.notes,
            **{key: seen.get(key) for key in ("psnr", "ssim", "largest")},
        }  # fmt: skip


def purify(at: Place, variant: str, cell: Cell) -> tuple[Purified, float]:
    """What a defense makes of a victim with the settings of the tables, and in how many seconds."""
    from ngf import device, params, plugins, store
    from ngf.bench.cell import settings
    from ngf.defenses import Clean

    plugin = plugins.load("defenses", cell.defense)
    options = {**settings(at, cell.defense), **cell.options}
    options = params.options(plugin.purify, options, cell.label)
    where = device.deterministic(0)
    images = Clean.of(clean_images(at.folder, cell.clean_share), where)
    victim = store.load_model(at.variant(variant) / "victim").to(where)
    started = time.perf_counter()
    purified = plugin.purify(victim, images, **options)
    return purified, time.perf_counter() - started


def clean_images(here: Path, share: float) -> Split:
    """The first `share` percent of the training images' number, equally from each class.

    The clean split is 1%. More than it has comes from the training images as they were before the
    poison, which the victim has seen.
    """
    import numpy as np

    from ngf import store

    clean = store.load_split(here / "clean")
    x_NHWC, y_N = clean.x_NHWC[:], np.asarray(clean.y_N)
    size_K = np.bincount(y_N)
    if share > 1:
        train = store.load_split(here / "train")
        x_NHWC = np.concatenate([x_NHWC, train.x_NHWC[:]])
        y_N = np.concatenate([y_N, train.y_N])
    kept = [
        np.flatnonzero(y_N == label)[: max(1, round(share * size))]
        for label, size in enumerate(size_K)
    ]
    rows_N = np.sort(np.concatenate(kept))
    return dataclasses.replace(clean, x_NHWC=x_NHWC[rows_N], y_N=y_N[rows_N])


def main() -> None:
    from ngf import params
    from ngf.bench import victims

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--norm", default="batch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--sets", nargs="+", default=["table"], choices=list(SETS))
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    numbers = params.read(Path("params.yaml"))
    done: list[dict] = json.loads(given.out.read_text()) if given.out.exists() else []
    names = ("dataset", "norm", "seed", "variant", "label")
    for seed in given.seeds:
        at = victims.place(numbers, given.dataset, seed=seed, norm=given.norm, root=given.root)
        for variant in given.variants:
            if not (at.variant(variant) / "victim").exists():
                continue
            seen = {tuple(row[name] for name in names) for row in done}
            key = (given.dataset, given.norm, seed, variant)
            cells = {cell.label: cell for name in given.sets for cell in SETS[name]}
            wanted = [cell for label, cell in cells.items() if (*key, label) not in seen]
            for row in rows(at, variant, wanted):
                done.append(row)
                print(_line(row), flush=True)
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text("[\n" + ",\n".join(json.dumps(r) for r in done) + "\n]\n")


def _line(row: Mapping[str, Any]) -> str:
    three = ", ".join(
        f"{key.upper()} {row[f'model_{key}']} ({row[f'victim_{key}']} before, "
        f"{row[f'reference_{key}']} reference)"
        for key in ("acc", "asr", "ra")
        if row[f"model_{key}"] is not None
    )
    where = f"{row['dataset']} {row['norm']} {row['seed']} {row['variant']}"
    return f"{where} {row['label']}: {three}, {row['seconds']} s"


if __name__ == "__main__":
    main()
