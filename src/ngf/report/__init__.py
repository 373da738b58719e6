"""The report: a grid as one HTML file and a Markdown table, and the pages of its parts.

Kubeflow's UI and MLflow show the same parts of one evaluation or inspection: `pages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ngf.params import Settings
    from ngf.stages.evaluate import Thresholds


def write(
    out: Path, runs: Sequence[Path], rows: Sequence[Path], thresholds: Thresholds
) -> tuple[str, dict[str, Path]]:
    """index.html, table.md, cells.json and plots/ below `out`, whole or not at all.

    Returns:
        what was written, in a line, and the files that are to be kept with it, by name.
    """
    from ngf import store
    from ngf.report import collect, page, plots, table

    cells = collect.gather(runs, rows, thresholds)
    found = table.rows(cells)
    with store.whole({"out": out}) as partial:
        folder = partial["out"]
        folder.mkdir()
        (folder / "index.html").write_text(page.grid(cells, found))
        (folder / "table.md").write_text(table.markdown(found))
        store.write_json(folder / "cells.json", table.as_json(found))
        plots.write(folder / "plots", cells)
    failed = sum(row.failed for row in found)
    warning = f"; VICTIM FAILED in {failed} of them" if failed else ""
    message = f"{out / 'index.html'}: {len(found)} cells{warning}"
    return message, {name: out / name for name in ("index.html", "table.md", "cells.json")}


def record(message: str, files: Mapping[str, Path], thresholds: Settings) -> None:
    """One MLflow run with the files; like a stage's, it is off or missing without harm."""
    from ngf import lineage
    from ngf.stages import Outcome

    with lineage.recording("report", {"evaluate": thresholds}, {}) as run:
        if run:
            run.kept(Outcome(message), files)


def evaluation_html(folder: Path) -> str:
    """The page of what `evaluate` wrote: ACC, ASR, RA, triggered images, confusion matrices."""
    from ngf.report import page

    return page.evaluation(folder)


def evaluation_markdown(folder: Path) -> str:
    from ngf.report import markdown

    return markdown.evaluation(folder)


def inspection_html(folder: Path) -> str:
    """The page of what `inspect` wrote: curvature, features, surface, density, movement."""
    from ngf.report import page

    return page.inspection(folder)


def inspection_markdown(folder: Path) -> str:
    from ngf.report import markdown

    return markdown.inspection(folder)


def confusion(folder: Path) -> tuple[list[str], list[list[int]]]:
    """(classes, counts of the purified model on clean images); empty above 50 classes."""
    from ngf import store
    from ngf.report.select import MOST_CLASSES

    found = store.read_json(folder / "confusion.json")
    if len(found["classes"]) > MOST_CLASSES:
        return [], []
    return found["classes"], found["model"]


def pages(folder: Path) -> dict[str, str]:
    """{file name: content} for a folder that `evaluate` or `inspect` wrote; {} for another one."""
    if (folder / "metrics.json").is_file():
        return {"page.html": evaluation_html(folder), "page.md": evaluation_markdown(folder)}
    if (folder / "curvature.json").is_file():
        return {"page.html": inspection_html(folder), "page.md": inspection_markdown(folder)}
    return {}
