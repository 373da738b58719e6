"""The table of results, from the metrics.json files of a grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ngf import store
from ngf.errors import InputError
from ngf.gate import Gate, objections

HEADER = (
    "data set", "attack", "defense", "ACC", "drop", "ASR", "before", "floor", "RA", "ceiling",
    "seconds", "verdict",
)  # fmt: skip


def collect(runs: Path, gate: Gate) -> list[dict[str, Any]]:
    """One row for each `runs`/<dataset>/<attack>/<defense>; numbers as fractions, None for none."""
    files = sorted(runs.glob("*/*/*/evaluation/metrics.json"))
    if not files:
        raise InputError(f"no results under {runs}: run `make run` or `dvc repro` first")
    return [_row(file, gate) for file in files]


def render(rows: Sequence[Mapping[str, Any]], form: str) -> str:
    """The rows as "text", "markdown" or "json"."""
    if form == "json":
        return json.dumps(rows, indent=2)
    cells = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    if form == "markdown":
        bars = ["| " + " | ".join(row) + " |" for row in cells]
        return "\n".join([bars[0], "|" + "---|" * len(HEADER), *bars[1:]])
    note = (
        "ACC, ASR, RA and thresholds in %. floor and ceiling: the clean reference's ASR and RA on "
        "the same triggered images."
    )
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "", note])


def _row(file: Path, gate: Gate) -> dict[str, Any]:
    metrics = store.load_metrics(file.parent)
    report = store.read_json(file.parent.parent / "report.json")
    values = {
        f"{whose}_{key}": None if metrics[whose][key] is None else metrics[whose][key]["value"]
        for whose in ("model", "victim", "reference")
        for key in ("acc", "asr", "ra")
    }
    names = {key: metrics[key] for key in ("dataset", "attack", "defense")}
    inspected = file.parent.parent / "inspection" / "curvature.json"
    curvature = store.read_json(inspected) if inspected.exists() else None
    verdict = _verdict(metrics, gate, curvature)
    return {**names, **values, "seconds": report["seconds"], "verdict": verdict}


def _verdict(metrics: Mapping[str, Any], gate: Gate, curvature: Mapping[str, Any] | None) -> str:
    if metrics["victim_failed"]:
        return f"VICTIM FAILED: {metrics['victim_failed']}"
    benign = metrics["victim"]["asr"] is None
    if metrics["defense"] == "none":
        return "no backdoor" if benign else "backdoored"
    reasons = objections(metrics, gate, curvature)
    if reasons:
        return "failed: " + "; ".join(reasons)
    return "unharmed" if benign else "purified"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.2f}"

    return (
        row["dataset"],
        row["attack"],
        row["defense"],
        percent(row["model_acc"]),
        percent(row["victim_acc"] - row["model_acc"]),
        percent(row["model_asr"]),
        percent(row["victim_asr"]),
        percent(row["reference_asr"]),
        percent(row["model_ra"]),
        percent(row["reference_ra"]),
        f"{row['seconds']:.1f}",
        row["verdict"],
    )
