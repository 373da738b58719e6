"""Pages: HTML in one file that fetches nothing, needs no script, and serves light and dark."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngf import store
from ngf.report import charts, pieces, published
from ngf.report import table as tables
from ngf.report.collect import Cell, Measured
from ngf.report.table import COLUMNS, Row

NO_INSPECTION = (
    "Curvature, loss surface, feature map and movement are not here: this defense was not "
    "inspected (`ngf inspect`)."
)


def render(template: str, **values: Any) -> str:
    """A template of this package, with all foreign text escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ngf.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    return _numbered(environment.get_template(template).render(**values))


def _numbered(page: str) -> str:
    """Every chart gets ids of its own: two may be alike."""
    numbers = itertools.count(1)
    return re.sub(
        r"<svg.*?</svg>",
        lambda chart: chart[0].replace(charts.OWN, f"c{next(numbers)}-"),
        page,
        flags=re.S,
    )


def _code(text: str) -> Any:
    """`words` in back-quotes as <code>, everything else escaped."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


# One folder -----------------------------------------------------------------------------------


def evaluation(folder: Path) -> str:
    metrics = store.load_metrics(folder)
    title = ", ".join(metrics[key] for key in ("dataset", "attack", "defense"))
    return render(
        "evaluation.html.j2",
        title=title,
        failed=metrics["victim_failed"],
        tables=_measures(metrics),
        figures=[
            figure
            for figure in (
                pieces.triggered(folder, metrics),
                pieces.way(metrics),
                pieces.confusions(folder),
            )
            if figure
        ],
    )


def inspection(folder: Path) -> str:
    pieces.check_inspection(folder)
    return render(
        "evaluation.html.j2",
        title="What purification did to the model",
        failed=None,
        tables=list(pieces.curvature(folder)),
        figures=list(pieces.inspected(folder)),
    )


def _measures(metrics: Mapping[str, Any]) -> list[tuple[str, pieces.Table]]:
    beside = pieces.against(metrics)
    found = [("Measured", pieces.shares(metrics))]
    return found + ([("Against the clean reference", beside)] if beside else [])


# A grid ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Defended:
    """One defense on the page of a pair."""

    name: str
    effort: str
    tables: Sequence[tuple[str, pieces.Table]]
    figures: Sequence[pieces.Figure]
    missing: str


@dataclass(frozen=True)
class Pair:
    """The page of a data set and an attack. sheet: its triggered images."""

    anchor: str
    dataset: str
    attack: str
    failed: str
    rows: Sequence[Row]
    seeds: int
    sheet: pieces.Figure | None
    defenses: Sequence[Defended]


def grid(cells: Mapping[Cell, Sequence[Measured]], table: Sequence[Row]) -> str:
    """The whole report."""
    by_dataset: dict[str, list[Row]] = {}
    for row in table:
        by_dataset.setdefault(row.cell[0], []).append(row)
    over = {name: list(tables.means(rows)) for name, rows in by_dataset.items()}
    return render(
        "report.html.j2",
        datasets=by_dataset,
        over=over,
        columns=COLUMNS,
        mark=tables.mark,
        anchor=anchor,
        by_attack=by_attack,
        summary=list(summary(table)),
        caution=published.CAUTION,
        published=published.beside(table),
        pairs=list(_pairs(cells, table)),
    )


def anchor(dataset: str, attack: str) -> str:
    """An id for the page of a pair, of its own for each pair that can be told apart."""
    named = re.sub(r"[^a-z0-9]+", "-", f"{dataset} {attack}".lower()).strip("-")
    own = hashlib.blake2b(f"{dataset}/{attack}".encode(), digest_size=3).hexdigest()
    return f"{named}-{own}"


def by_attack(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.cell[1], []).append(row)
    return list(groups.values())


def summary(table: Sequence[Row]) -> Iterator[str]:
    """What was measured and found, in sentences."""
    datasets, attacks, defenses = (
        list(dict.fromkeys(row.cell[place] for row in table)) for place in range(3)
    )
    n = sorted({row.n + (0 if row.failed else len(row.failures)) for row in table})
    seeds = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    counted = ", ".join(
        _count(len(names), thing)
        for names, thing in ((datasets, "data set"), (attacks, "attack"), (defenses, "defense"))
    )
    yield (
        f"{len(table)} cells of {counted}, `none` and `benign` among them where they are there; "
        f"seeds of a cell: {seeds}."
    )
    for dataset, defense, over, count in tables.means(table):
        if defense == tables.REFERENCE_POINT:
            continue
        asr, floor = over["model_asr"], over["reference_asr"]
        yield (
            f"{dataset}, {defense}: over {count} attacks ASR is {100 * asr.mean:.1f}% where it was "
            f"{100 * over['victim_asr'].mean:.1f}% and a clean model has {100 * floor.mean:.1f}%; "
            f"it cost {100 * over['drop'].mean:.1f} points of ACC."
        )
    failed = sorted({row.cell[:2] for row in table if row.failed})
    if failed:
        names = ", ".join(f"{attack} on {dataset}" for dataset, attack in failed)
        yield f"FAILED attacks, which are in no mean: {names}."
    else:
        yield "Every attack took with one seed at least."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _pairs(cells: Mapping[Cell, Sequence[Measured]], table: Sequence[Row]) -> Iterator[Pair]:
    for dataset, attack in dict.fromkeys(row.cell[:2] for row in table):
        rows = [row for row in table if row.cell[:2] == (dataset, attack)]
        folders = {row.cell[2]: _folder(cells[row.cell]) for row in rows}
        shown = {name: folder for name, folder in folders.items() if folder}
        first = next(iter(shown.values()), None)
        yield Pair(
            anchor=anchor(dataset, attack),
            dataset=dataset,
            attack=attack,
            failed="; ".join(dict.fromkeys(r for row in rows for r in row.failures)),
            rows=rows,
            seeds=max(len(cells[row.cell]) for row in rows),
            sheet=_sheet(first / "evaluation") if first else None,
            defenses=[
                _defended(name, folder)
                for name, folder in shown.items()
                if name != tables.REFERENCE_POINT or len(shown) == 1
            ],
        )


def _folder(seeds: Sequence[Measured]) -> Path | None:
    """Of the first seed that has one, if may be of a victim that took."""
    known = [one for one in seeds if one.folder]
    taken = [one for one in known if not one.failed]
    return next((one.folder for one in (*taken, *known)), None)


def _sheet(folder: Path) -> pieces.Figure | None:
    return pieces.triggered(folder, store.load_metrics(folder))


def _defended(name: str, folder: Path) -> Defended:
    metrics = store.load_metrics(folder / "evaluation")
    report = store.read_json(folder / "report.json")
    figures = [pieces.way(metrics), pieces.confusions(folder / "evaluation")]
    found = _measures(metrics)
    looked = (folder / "inspection").is_dir()
    if looked:
        pieces.check_inspection(folder / "inspection")
        found += pieces.curvature(folder / "inspection")
        figures += pieces.inspected(folder / "inspection")
    return Defended(
        name=name,
        effort=(
            f"{report['seconds']:.1f} s, {report['parameters_tuned']:,} parameters tuned in "
            f"{report.get('steps', 0)} steps"
        ),
        tables=found,
        figures=figures,
        missing="" if looked else NO_INSPECTION,
    )
