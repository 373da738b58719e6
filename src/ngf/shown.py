"""An evaluation as Kubeflow's UI shows it: confusion matrix, Markdown, a page with pictures."""

from __future__ import annotations

import base64
import html as escaping
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ngf import store

MOST_CLASSES = 50  # of a matrix that the UI can still draw
WHO = {"victim": "victim, before", "model": "after", "reference": "clean reference"}
WHAT = {
    "acc": "clean images answered with their class",
    "asr": "triggered images answered as the attacker wants",
    "ra": "triggered images answered with their class",
}


def confusion(folder: Path) -> tuple[list[str], list[list[int]]]:
    """(classes, matrix of the purified model on clean images); empty where there are too many."""
    found = store.read_json(folder / "confusion.json")
    if len(found["classes"]) > MOST_CLASSES:
        return [], []
    return found["classes"], found["model"]


def markdown(folder: Path) -> str:
    """ACC, ASR and RA before and after, and of the clean reference, each with its interval."""
    metrics = store.load_metrics(folder)
    lines = [f"### {_title(metrics)}", ""]
    if metrics["victim_failed"]:
        lines += [f"**Victim failed:** {metrics['victim_failed']}", ""]
    lines += [f"| | {' | '.join(WHO.values())} | |", "|---" * (len(WHO) + 2) + "|"]
    for name, cells, what in _rows(metrics):
        lines.append(f"| **{name}** | {' | '.join(cells)} | {what} |")
    return "\n".join([*lines, "", "In per cent of the test split, with 95% intervals.", ""])


def html(folder: Path) -> str:
    """The same as a page, with the triggered images where there are any; needs no network."""
    metrics = store.load_metrics(folder)
    title = escaping.escape(_title(metrics))
    head = "".join(f"<th>{who}</th>" for who in WHO.values())
    rows = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}<td>{what}</td></tr>"
        for name, cells, what in _rows(metrics)
    )
    parts = [f"<h1>{title}</h1>"]
    if metrics["victim_failed"]:
        parts.append(f"<p><b>Victim failed:</b> {escaping.escape(metrics['victim_failed'])}</p>")
    parts.append(f"<table><tr><th></th>{head}<th></th></tr>{rows}</table>")
    parts.append("<p>In per cent of the test split, with 95% intervals.</p>")
    picture = folder / "triggered.png"
    if picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append("<h2>Clean, triggered, their difference</h2>")
        parts.append(f'<img alt="triggered images" src="data:image/png;base64,{data}">')
    return f"<!doctype html><meta charset=utf-8><title>{title}</title>{STYLE}{''.join(parts)}\n"


STYLE = """<style>
:root { color-scheme: light dark }
body { font: 15px system-ui, sans-serif; margin: 1.5rem }
table { border-collapse: collapse } th, td { padding: .3rem .8rem; text-align: left }
tr { border-bottom: 1px solid #8886 } img { max-width: 100%; image-rendering: pixelated }
</style>"""


def _title(metrics: Mapping[str, Any]) -> str:
    return f"{metrics['dataset']}, {metrics['attack']}, {metrics['defense']}"


def _rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, list[str], str]]:
    """(name, a cell for each of WHO, what it is)."""
    for key, what in WHAT.items():
        yield key.upper(), [_cell(metrics[who][key]) for who in WHO], what


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
