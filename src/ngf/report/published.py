"""The paper family's printed numbers beside ours; they are other networks', so nothing is ranked.

NGF's own tables could not be had: what there is comes from its successors, NFT and FIP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ngf.report.table import Row, Stat

CAUTION = (
    "No table of NGF's own is here: these are figures of NFT and FIP, later methods of the same "
    "authors, and of what they compared with. Their networks are wider than ours, were trained "
    "longer and attacked by other implementations: ours stand beside them for orientation and are "
    "not ranked with them."
)


@dataclass(frozen=True)
class Beside:
    """A published table with our cells of the same attacks first in each row.

    groups: (whose columns, their names). rows: (attack, a cell a column). ours: our defenses.
    """

    title: str
    network: str
    notes: Sequence[str]
    ours: Sequence[str]
    groups: Sequence[tuple[str, Sequence[str]]]
    rows: Sequence[tuple[str, Sequence[str]]]

    @property
    def known(self) -> bool:
        return bool(self.ours)


def tables() -> list[dict[str, Any]]:
    text = resources.files("ngf.report").joinpath("published.json").read_text()
    found: list[dict[str, Any]] = json.loads(text)
    return found


def beside(rows: Sequence[Row]) -> list[Beside]:
    """Every published table, our cells of its data set first in each row."""
    return [_one(table, rows) for table in tables()]


def _one(table: Mapping[str, Any], rows: Sequence[Row]) -> Beside:
    cells = {row.cell[1:]: row for row in rows if row.cell[0] == table["dataset"]}
    attacks = {row["attack"] for row in table["rows"]}
    ours = list(dict.fromkeys(defense for attack, defense in cells if attack in attacks))
    curved = "lambda_max" in table["rows"][0]["No defense"]
    title, method = table["table"], table["method"]
    return Beside(
        title=title,
        network=table["network"],
        notes=table["notes"],
        ours=ours,
        groups=[
            ("ours: ASR / ACC, %", ours),
            (f"printed in {method}'s table: ASR / ACC, %", table["defenses"]),
            (f"printed in {method}'s table: λ_max", table["defenses"] if curved else []),
        ],
        rows=[
            (
                _name(row),
                [
                    *(_ours(cells.get((row["attack"], defense))) for defense in ours),
                    *(_theirs(table, row, name) for name in table["defenses"]),
                    *((f"{row[n]['lambda_max']:g}" for n in table["defenses"]) if curved else ()),
                ],
            )
            for row in table["rows"]
        ],
    )


def _name(row: Mapping[str, Any]) -> str:
    printed: str = row["printed"]
    ours: str = row["attack"]
    alike = printed.lower().replace("-", "_") == ours
    return ours if alike else f"{ours} ({printed})"


def _theirs(table: Mapping[str, Any], row: Mapping[str, Any], name: str) -> str:
    odd = name in table.get("misprints", {}).get(row["attack"], ())
    return f"{row[name]['asr']:.2f} / {row[name]['acc']:.2f}" + (" *" if odd else "")


def _ours(row: Row | None) -> str:
    """ASR / ACC like theirs; their benign rows have an ASR of 0 where ours has none."""
    if row is None:
        return "–"

    def percent(stat: Stat | None) -> str:
        return "–" if stat is None else stat.percent()

    text = f"{percent(row.stats['model_asr'])} / {percent(row.stats['model_acc'])}"
    return f"{text} (victim FAILED)" if row.failed else text
