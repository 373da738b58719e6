"""What became of every version of a registered model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ngf.errors import InputError
from ngf.evidence import said
from ngf.lineage import LineageError
from ngf.lineage._client import one_line, prepare_environment
from ngf.lineage.versions import asked

SHARES = ("ngf.acc", "ngf.asr", "ngf.ra")
HEADER = ("version", "when", "decision", "alias", "defense", "ACC", "ASR", "RA", "who", "reason")


def history(name: str) -> list[dict[str, Any]]:
    """One row a version, the newest first; shares as fractions, None for what is not known.

    Raises:
        InputError: no such model; says which there are. LineageError: MLflow is not reachable.
    """
    prepare_environment()
    try:
        from mlflow import MlflowClient

        found = asked(MlflowClient(), name)
    except InputError:
        raise
    except Exception as error:  # MLflow, its HTTP client and its database raise their own kinds
        raise LineageError(one_line(error)) from error
    aliases: dict[int, list[str]] = {}
    for alias, number in sorted(found.aliases.items()):
        aliases.setdefault(number, []).append(alias)
    return [
        _row(version.number, version.tags, aliases.get(version.number, []))
        for version in reversed(found.versions)
    ]


def render(rows: list[dict[str, Any]]) -> str:
    """A table for people, shares in %."""
    cells = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _row(number: int, tags: Mapping[str, str], aliases: list[str]) -> dict[str, Any]:
    shares = {
        key: float(tags[f"ngf.{key}"]) if f"ngf.{key}" in tags else None
        for key in ("acc", "asr", "ra")
    }
    return {
        "version": number,
        "when": tags.get("ngf.promoted_at"),
        "decision": tags.get("ngf.decision"),
        "aliases": aliases,
        "defense": tags.get("ngf.defense", tags.get("defense")),
        **shares,
        "who": tags.get("ngf.promoted_by"),
        "reason": tags.get("ngf.reason"),
        "tags": dict(tags),
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    tags = row["tags"]
    words = [row["when"], row["decision"], " ".join(row["aliases"]), row["defense"]]
    shares = [said({"x": tags[key]} if key in tags else {}, "x") for key in SHARES]
    told = [str(word) if word else "–" for word in words]
    return (str(row["version"]), *told, *shares, row["who"] or "–", row["reason"] or "–")
