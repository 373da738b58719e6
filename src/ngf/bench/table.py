"""What a benchmark says: means over victims, and ranks.

All figures in percentage points. A victim whose attack did not take is shown and left out of means;
a benign one counts for ACC alone. Per victim each defense is ranked by ASR, by ACC drop and by RA
(1 is best, equals share the mean of their places); its rank is the mean of the three, and then over
all victims that every defense was tried on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cell = Mapping[str, Any]
Key = tuple[str, str, int]  # data set, attack, seed
HEADER = (
    "defense", "n", "ASR", "ASR above floor", "RA", "ACC drop", "ACC drop, benign", "rank",
    "seconds", "MiB", "gone",
)  # fmt: skip
GONE = 0.03  # ASR above the floor up to which a backdoor counts as gone


@dataclass(frozen=True)
class Measured:
    """A cell that ran, in fractions. asr, ra, floor: None where there is no attack."""

    key: Key
    defense: str
    acc_drop: float
    asr: float | None
    ra: float | None
    floor: float | None
    seconds: float
    mib: float
    failed: str | None

    @property
    def counts(self) -> bool:
        """Whether there was a backdoor to remove."""
        return self.asr is not None and self.failed is None


def measured(cells: Iterable[Cell]) -> list[Measured]:
    """The cells that hold a result."""
    return [_measured(cell) for cell in cells if "error" not in cell]


def _measured(cell: Cell) -> Measured:
    def value(whose: str, key: str) -> float | None:
        return cell[whose][key] and float(cell[whose][key]["value"])

    before, after = value("victim", "acc"), value("model", "acc")
    assert before is not None
    assert after is not None
    return Measured(
        (cell["dataset"], cell["attack"], cell["seed"]), cell["defense"], before - after,
        value("model", "asr"), value("model", "ra"), value("reference", "asr"),
        cell["seconds"], cell["own_bytes"] / 2**20, cell["attack_failed"],
    )  # fmt: skip


def ranks(cells: Sequence[Measured]) -> dict[str, float]:
    """{defense: mean rank}, over victims that all defenses were tried on."""
    defenses = {one.defense for one in cells}
    by_victim: dict[Key, list[Measured]] = {}
    for one in cells:
        if one.counts:
            by_victim.setdefault(one.key, []).append(one)
    places: dict[str, list[float]] = {defense: [] for defense in defenses}
    for those in by_victim.values():
        if {one.defense for one in those} != defenses:
            continue
        orders = [
            _places([one.asr or 0.0 for one in those]),
            _places([one.acc_drop for one in those]),
            _places([-(one.ra or 0.0) for one in those]),
        ]
        for one, three in zip(those, zip(*orders, strict=True), strict=True):
            places[one.defense].append(sum(three) / 3)
    return {defense: statistics.fmean(found) for defense, found in places.items() if found}


def _places(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equals share the mean of their places."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def overall(cells: Sequence[Measured]) -> list[tuple[str, ...]]:
    """One row a defense, the best rank first; those without a rank last."""
    rank = ranks(cells)
    names = sorted({one.defense for one in cells}, key=lambda name: (rank.get(name, 1e9), name))
    return [_row(name, [one for one in cells if one.defense == name], rank) for name in names]


def _row(name: str, own: Sequence[Measured], rank: Mapping[str, float]) -> tuple[str, ...]:
    counted = [one for one in own if one.counts]
    benign = [one for one in own if one.asr is None]

    def spread(of: Callable[[Measured], float | None], among: Sequence[Measured]) -> str:
        return _spread([100 * found for one in among if (found := of(one)) is not None])

    gone = sum(_above(one) <= GONE for one in counted)
    return (
        name, str(len(counted)), spread(lambda one: one.asr, counted), spread(_above, counted),
        spread(lambda one: one.ra, counted), spread(lambda one: one.acc_drop, counted),
        spread(lambda one: one.acc_drop, benign), f"{rank[name]:.1f}" if name in rank else "–",
        f"{statistics.fmean(one.seconds for one in own):.1f}",
        f"{statistics.fmean(one.mib for one in own):.0f}", f"{gone} of {len(counted)}",
    )  # fmt: skip


def _above(one: Measured) -> float:
    return (one.asr or 0.0) - (one.floor or 0.0)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def by_attack(cells: Sequence[Measured], attacks: Sequence[str]) -> list[tuple[str, ...]]:
    """One row a defense: ASR / ACC drop of each attack, means over seeds; the header first."""
    header = ("defense", *attacks)
    names = [row[0] for row in overall(cells)]
    return [header, *(_of_attacks(name, cells, attacks) for name in names)]


def _of_attacks(name: str, cells: Sequence[Measured], attacks: Sequence[str]) -> tuple[str, ...]:
    row = [name]
    for attack in attacks:
        own = [one for one in cells if one.defense == name and one.key[1] == attack]
        if not own:
            row.append("")
            continue
        drop = f"{100 * statistics.fmean(one.acc_drop for one in own):.1f}"
        asr = [100 * one.asr for one in own if one.asr is not None]
        shown = f"{statistics.fmean(asr):.1f} / {drop}" if asr else drop
        row.append(f"({shown})" if any(one.failed for one in own) else shown)
    return tuple(row)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def render(cells: Sequence[Cell]) -> str:
    """All of it as Markdown, one section a data set."""
    parts = []
    done = measured(cells)
    for dataset in dict.fromkeys(cell["dataset"] for cell in cells):
        here = [one for one in done if one.key[0] == dataset]
        attacks = list(dict.fromkeys(one.key[1] for one in here))
        seeds = sorted({one.key[2] for one in here})
        parts += [
            f"## {dataset}, seeds {', '.join(map(str, seeds))}",
            markdown([HEADER, *overall(here)]),
            "ASR / ACC drop by attack; in brackets where the attack did not take on some seed:",
            markdown(by_attack(here, attacks)),
        ]
    parts += [_errors(cells)] if _errors(cells) else []
    return "\n\n".join(parts)


def _errors(cells: Sequence[Cell]) -> str:
    lost = [cell for cell in cells if "error" in cell]
    return "\n".join(
        f"- {one['dataset']} {one['seed']} {one['attack']} {one['defense']}: {one['error']}"
        for one in lost
    )
