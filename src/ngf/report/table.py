"""Cells over seeds: mean ± std with n, the best of each attack, and the table as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ngf.report.collect import Cell, Measured

HEADER = (
    "data set", "attack", "defense", "n", "ACC before", "ACC after", "ACC drop", "ASR before",
    "ASR after", "ASR floor", "RA before", "RA after", "RA ceiling", "seconds", "tuned",
)  # fmt: skip
COLUMNS = (
    "victim_acc", "model_acc", "drop", "victim_asr", "model_asr", "reference_asr", "victim_ra",
    "model_ra", "reference_ra",
)  # fmt: skip
# column: whether low is best
BEST = {"drop": True, "model_asr": True, "model_ra": False}
REFERENCE_POINT = "none"  # no defense: it is not ranked


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation of n values; std is None where n is 1."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat:
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))

    def percent(self, places: int = 1) -> str:
        """As "97.5 ± 0.2", in per cent; a negative zero is zero."""
        mean = f"{round(100 * self.mean, places) + 0.0:.{places}f}"
        return mean if self.std is None else f"{mean} ± {100 * self.std:.{places}f}"

    def seconds(self) -> str:
        return f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} ± {self.std:.1f}"


@dataclass(frozen=True)
class Row:
    """A cell over its seeds.

    stats: one for each of COLUMNS, fractions, None where no image counts. n: seeds in them.
    failures: why, a word for each seed whose victim failed; such seeds are left out of stats
    unless all failed, and then `failed`.
    best: the columns of BEST in which this row leads its attack.
    """

    cell: Cell
    stats: Mapping[str, Stat | None]
    seconds: Stat
    tuned: int
    n: int
    failures: tuple[str, ...]
    failed: bool
    best: frozenset[str] = frozenset()

    @property
    def benign(self) -> bool:
        return self.stats["victim_asr"] is None


def rows(cells: Mapping[Cell, Sequence[Measured]]) -> list[Row]:
    """One a cell, with the best of each (dataset, attack) marked where there are two to compare."""
    found = [_row(cell, seeds) for cell, seeds in cells.items()]
    return [_with_best(row, found) for row in found]


def _row(cell: Cell, seeds: Sequence[Measured]) -> Row:
    taken = [one for one in seeds if not one.failed]
    counted = taken or list(seeds)
    return Row(
        cell=cell,
        stats={column: _stat(column, counted) for column in COLUMNS},
        seconds=Stat.of([one.seconds for one in counted]),
        tuned=max(one.tuned for one in counted),
        n=len(counted),
        failures=tuple(one.failed for one in seeds if one.failed),
        failed=not taken,
    )


def _stat(column: str, seeds: Sequence[Measured]) -> Stat | None:
    values = [_value(column, one) for one in seeds]
    known = [value for value in values if value is not None]
    return Stat.of(known) if known else None


def _value(column: str, one: Measured) -> float | None:
    if column != "drop":
        return one.shares[column]
    before, after = one.shares["victim_acc"], one.shares["model_acc"]
    return None if before is None or after is None else before - after


def _with_best(row: Row, everyone: Sequence[Row]) -> Row:
    """Rows that look alike in the table share the first place."""
    rivals = [
        r for r in everyone if r.cell[:2] == row.cell[:2] and r.cell[2] != REFERENCE_POINT
    ]  # fmt: skip
    if len(rivals) < 2 or row not in rivals or row.failed:
        return row
    leading = set()
    for column, low in BEST.items():
        shown = {id(r): round(s.mean, 3) for r in rivals if (s := r.stats[column]) is not None}
        if shown and shown.get(id(row)) == (min if low else max)(shown.values()):
            leading.add(column)
    return Row(**{**row.__dict__, "best": frozenset(leading)})


def means(table: Sequence[Row]) -> Iterator[tuple[str, str, dict[str, Stat], int]]:
    """(dataset, defense, {column: over attacks}, attacks) without benign and failed ones.

    Each attack counts once, with its mean over seeds.
    """
    for dataset, defense in dict.fromkeys((row.cell[0], row.cell[2]) for row in table):
        counted = [
            row
            for row in table
            if (row.cell[0], row.cell[2]) == (dataset, defense) and not row.failed
        ]
        counted = [row for row in counted if not row.benign]
        if len(counted) > 1:
            over = {
                column: Stat.of([s.mean for row in counted if (s := row.stats[column])])
                for column in COLUMNS
            }
            yield dataset, defense, over, len(counted)


def markdown(table: Sequence[Row]) -> str:
    """The table, with what its marks mean."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in table]
    for dataset, defense, over, count in means(table):
        stats = [over[column].percent() for column in COLUMNS]
        named = [safe(dataset), f"*mean of {count} attacks*", safe(defense), ""]
        lines.append("| " + " | ".join([*named, *stats, "", ""]) + " |")
    return "\n".join([*lines, "", *NOTES, *_why(table)]) + "\n"


NOTES = (
    "ACC, ASR and RA in per cent of the test split: mean ± standard deviation over n seeds. Before "
    "and after the defense; floor and ceiling are the clean reference's ASR and RA on the same "
    "triggered images.",
    "**Bold**: best of the defenses of an attack by lowest ACC drop, lowest ASR, highest RA, where "
    "there are two. **FAILED**: no victim of the attack took; such rows are in no mean.",
)


def _why(table: Sequence[Row]) -> list[str]:
    """Each failure once: defenses share their victim."""
    found = dict.fromkeys(
        (row.cell[0], row.cell[1], reason) for row in table for reason in row.failures
    )
    return [f"- {safe(d)} {safe(a)}: {safe(reason)}" for d, a, reason in found]


def mark(row: Row) -> str:
    """What is said beside an attack whose victims did not all take."""
    if row.failed:
        return "FAILED"
    return f"{len(row.failures)} of {row.n + len(row.failures)} failed" if row.failures else ""


def _cells(row: Row) -> list[str]:
    def shown(column: str) -> str:
        stat = row.stats[column]
        text = "–" if stat is None else stat.percent()
        return f"**{text}**" if column in row.best else text

    dataset, attack, defense = map(safe, row.cell)
    attack += f" **{mark(row)}**" if mark(row) else ""
    effort = [row.seconds.seconds(), f"{row.tuned:,}"]
    return [dataset, attack, defense, str(row.n), *map(shown, COLUMNS), *effort]


def safe(text: str) -> str:
    """Foreign text in a Markdown cell: no bars, no tags, no line breaks."""
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        text = text.replace(sign, instead)
    return " ".join(text.split())


def as_json(table: Sequence[Row]) -> list[dict[str, Any]]:
    """The table for machines: fractions, {"mean", "std", "n"}."""
    return [
        {
            **dict(zip(("dataset", "attack", "defense"), row.cell, strict=True)),
            "n": row.n,
            "failed": row.failed,
            "failures": list(row.failures),
            "best": sorted(row.best),
            **{c: None if (s := row.stats[c]) is None else s.__dict__ for c in COLUMNS},
            "seconds": row.seconds.__dict__,
            "parameters_tuned": row.tuned,
        }
        for row in table
    ]
