"""Small files for `dvc plots`: one a cell and chart, as dvc.yaml's `plots` section names them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ngf import store
from ngf.report import pieces, select
from ngf.report.collect import Cell, Measured
from ngf.report.table import REFERENCE_POINT

FOLDERS = ("along", "confusion", "movement", "density")
CURVES = {"reference": "reference", **select.BEFORE_AND_AFTER}


def write(out: Path, cells: Mapping[Cell, Sequence[Measured]]) -> None:
    """`out`/<chart>/<dataset>-<attack>-<defense>.json of each cell's first folder.

    A chart without data leaves an empty folder, which DVC needs not to call it missing.
    """
    for name in FOLDERS:
        (out / name).mkdir(parents=True)
    for cell, seeds in cells.items():
        if cell[2] == REFERENCE_POINT:  # nothing changed
            continue
        folder = next((one.folder for one in seeds if one.folder), None)
        if folder:
            _cell(out, "-".join(cell).replace("/", "_"), folder)


def _cell(out: Path, name: str, folder: Path) -> None:
    metrics = store.load_metrics(folder / "evaluation")
    _rows(out / "along" / f"{name}.json", _along(metrics))
    found = store.read_json(folder / "evaluation" / "confusion.json")
    if len(found["classes"]) <= select.MOST_CLASSES:
        _answers(out / "confusion" / f"{name}.csv", found)
    looked = folder / "inspection"
    if looked.is_dir():
        pieces.check_inspection(looked)
        layers = pieces.movement(looked)
        _rows(out / "movement" / f"{name}.json", layers)
        spectra = store.read_json(looked / "curvature.json")["test"]
        _rows(out / "density" / f"{name}.json", _density(spectra))


def _along(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Places from 0, the victim, to the last, the purified model; `step` in words; fractions."""
    for place, (step, values) in enumerate(select.points(metrics)):
        yield {"place": place, "step": step, **{k.upper(): values[k] for k in ("acc", "asr", "ra")}}


def _density(spectra: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """log10 of each model's density at its own eigenvalues; DVC's templates have no log axes."""
    nothing = dict.fromkeys(CURVES.values())
    for who, name in CURVES.items():
        curve = spectra[who].get("density") or {"grid": (), "density": ()}
        for value, share in zip(curve["grid"], curve["density"], strict=True):
            if share > 0:
                yield {"eigenvalue": value, **nothing, name: round(math.log10(share), 4)}


def _answers(file: Path, found: Mapping[str, Any]) -> None:
    """A line an image, as DVC's template counts them."""
    names = found["classes"]
    with file.open("w", newline="") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(("actual", "predicted"))
        for actual, counts in zip(names, found["model"], strict=True):
            for predicted, count in zip(names, counts, strict=True):
                lines.writerows([(actual, predicted)] * count)


def _rows(file: Path, rows: Any) -> None:
    """A row a line; nothing is written where there is none."""
    lines = [json.dumps(row) for row in rows]
    if lines:
        file.write_text("[\n" + ",\n".join(lines) + "\n]\n")
