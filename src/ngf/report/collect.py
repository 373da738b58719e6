"""What a report is made of: one `Measured` a cell and seed, from folders of a grid and rows files.

A cell is (dataset, attack, defense). Several grids are several seeds of the same cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngf import store
from ngf.errors import InputError

if TYPE_CHECKING:
    from ngf.stages.evaluate import Thresholds

WHO = ("victim", "model", "reference")
KEYS = ("acc", "asr", "ra")
NAMES = ("dataset", "variant", "label", "seed", "seconds", "tuned")  # a row has them, and shares
Cell = tuple[str, str, str]


@dataclass(frozen=True)
class Measured:
    """One evaluation.

    shares: {"model_acc": ...} for all of WHO and KEYS, fractions, None where no image counts.
    seconds: of purification. tuned: parameters. failed: why the victim is none, or None.
    source: in words, for errors. folder: <runs>/<dataset>/<attack>/<defense>, None for a row.
    """

    cell: Cell
    shares: Mapping[str, float | None]
    seconds: float
    tuned: int
    failed: str | None
    source: str
    folder: Path | None = None


def gather(
    runs: Sequence[Path], rows: Sequence[Path], thresholds: Thresholds
) -> dict[Cell, list[Measured]]:
    """{cell: its seeds}, in the order of data sets, attacks and defenses as they first appear."""
    found: dict[Cell, list[Measured]] = {}
    for one in (*_all_runs(runs), *_all_rows(rows, thresholds)):
        found.setdefault(one.cell, []).append(one)
    return dict(sorted(found.items(), key=lambda item: _order(item[0], list(found))))


def _order(cell: Cell, cells: Sequence[Cell]) -> tuple[Any, ...]:
    """benign and `none` come first of their kind, everything else as its sources have it."""
    dataset, attack, defense = cell
    firsts = [next(i for i, c in enumerate(cells) if c[place] == cell[place]) for place in range(3)]
    return (
        firsts[0], dataset, attack != "benign", firsts[1], attack,
        defense != "none", firsts[2], defense,
    )  # fmt: skip


def _all_runs(folders: Sequence[Path]) -> Iterator[Measured]:
    seen: dict[Path, Path] = {}
    for runs in folders:
        if (other := seen.setdefault(runs.resolve(), runs)) is not runs:
            raise InputError(f"--runs {runs} and --runs {other} are the same folder")
        files = sorted(runs.glob("*/*/*/evaluation/metrics.json"))
        if not files:
            raise InputError(f"no results under {runs}: run `make run` or `dvc repro` first")
        for file in files:
            yield _of_folder(file.parent.parent)


def _of_folder(folder: Path) -> Measured:
    metrics = store.load_metrics(folder / "evaluation")
    report = store.read_json(folder / "report.json")
    missing = [key for key in ("seconds", "parameters_tuned") if key not in report]
    if missing:
        raise InputError(f"{folder / 'report.json'} is no report: it lacks '{missing[0]}'")
    shares = {
        f"{who}_{key}": metrics[who][key] and metrics[who][key]["value"]
        for who in WHO
        for key in KEYS
    }
    cell = (metrics["dataset"], metrics["attack"], metrics["defense"])
    return Measured(
        cell,
        shares,
        report["seconds"],
        report["parameters_tuned"],
        metrics["victim_failed"],
        str(folder),
        folder,
    )


def _all_rows(files: Sequence[Path], thresholds: Thresholds) -> Iterator[Measured]:
    """A row that two files hold alike counts once; two that differ are an error."""
    seen: dict[tuple[Any, ...], Measured] = {}
    for file in files:
        for row in _read_rows(file):
            one = _of_row(row, file, thresholds)
            key = (*one.cell, row["seed"])
            other = seen.setdefault(key, one)
            if other is one:
                yield one
            elif other.shares != one.shares:
                where = " ".join(one.cell)
                raise InputError(
                    f"seed {row['seed']} of {where} is in {other.source} and in {one.source}, "
                    "with other numbers"
                )


def _read_rows(file: Path) -> list[dict[str, Any]]:
    rows = store.read_any_json(file)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(
            f"{file} must hold a list of rows as `ngf bench` or benchmarks/ablation.py write them"
        )
    rows = [_flat(row) for row in rows if "error" not in row]  # a cell that failed has no numbers
    wanted = (*NAMES, *(f"{who}_{key}" for who in WHO for key in KEYS))
    for number, row in enumerate(rows):
        missing = [key for key in wanted if key not in row]
        if missing:
            raise InputError(f"row {number} of {file} lacks '{missing[0]}'")
    return rows


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of benchmarks/ablation.py; a cell of `ngf bench` becomes one."""
    if not all(isinstance(row.get(who), dict) for who in WHO):
        return row
    names = {"attack": "variant", "defense": "label", "parameters_tuned": "tuned"}
    flat = {names.get(key, key): value for key, value in row.items() if key not in WHO}
    for who in WHO:
        for key, share in row[who].items():
            flat[f"{who}_{key}"] = None if share is None else 100 * share["value"]
    return flat


def _of_row(row: Mapping[str, Any], file: Path, thresholds: Thresholds) -> Measured:
    shares = {
        f"{who}_{key}": None if row[f"{who}_{key}"] is None else row[f"{who}_{key}"] / 100
        for who in WHO
        for key in KEYS
    }
    three = {
        who: {key: None if (v := shares[f"{who}_{key}"]) is None else {"value": v} for key in KEYS}
        for who in WHO
    }
    norm = row.get("norm", "batch")
    dataset = row["dataset"] if norm == "batch" else f"{row['dataset']}, {norm} norm"
    failed = thresholds.failure(row["variant"].partition("-")[0], three)
    cell = (dataset, row["variant"], row["label"])
    return Measured(cell, shares, row["seconds"], row["tuned"], failed, str(file))
