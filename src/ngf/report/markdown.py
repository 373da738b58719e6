"""The tables of one evaluation or inspection as Markdown, for Kubeflow's UI and MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ngf import store
from ngf.report import pieces
from ngf.report.table import safe

MOST = 10  # layers


def evaluation(folder: Path) -> str:
    """ACC, ASR and RA before and after, and of the clean reference, each with its interval."""
    metrics = store.load_metrics(folder)
    title = ", ".join(safe(metrics[key]) for key in ("dataset", "attack", "defense"))
    lines = [f"### {title}", ""]
    if metrics["victim_failed"]:
        lines += [f"**Victim failed:** {safe(metrics['victim_failed'])}", ""]
    lines += _table(pieces.shares(metrics))
    if beside := pieces.against(metrics):
        lines += _table(beside)
    return "\n".join(lines)


def inspection(folder: Path) -> str:
    """Curvature with intervals, and the layers that moved most."""
    pieces.check_inspection(folder)
    lines = []
    for heading, table in pieces.curvature(folder):
        lines += [f"### {heading}", "", *_table(table)]
    known = [layer for layer in pieces.movement(folder) if layer["moved"] is not None]
    known = sorted(known, key=lambda layer: -layer["moved"])[:MOST]
    rows = [(f"`{safe(layer['layer'])}`", [f"{100 * layer['moved']:.1f}%"]) for layer in known]
    lines += ["### Layers that moved most", "", *_table(pieces.Table(["of the norm before"], rows))]
    return "\n".join(lines)


def _table(table: pieces.Table) -> Iterator[str]:
    yield f"| | {' | '.join(map(safe, table.head))} |"
    yield "|---" * (len(table.head) + 1) + "|"
    for name, cells in table.rows:
        yield f"| **{name}** | {' | '.join(map(safe, cells))} |"
    yield ""
    if table.note:
        yield table.note
        yield ""
