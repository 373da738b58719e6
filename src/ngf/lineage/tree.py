"""A chain of runs as people and machines read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ngf.lineage.chain import Chain, Link

LOST = "written outside of this MLflow"
KEEP = 60  # characters of a setting


def render(chain: Chain) -> str:
    """What was asked for, and below each run what it read and who wrote that."""
    lines = [chain.address]
    if chain.version:
        name, number = chain.version
        decision = chain.tags.get("ngf.decision", "registered")
        lines[0] += f": {name} version {number}, {decision}"
    seen: set[str] = set()
    lines += _lines(chain.last, "", seen)
    return "\n".join(lines)


def as_dict(chain: Chain) -> dict[str, Any]:
    """Runs by id, each with what it read and which run wrote that (None: not known)."""
    runs: dict[str, Any] = {}
    _collect(chain.last, runs)
    name, number = chain.version or (None, None)
    return {
        "address": chain.address,
        "model": name,
        "version": number,
        "tags": dict(chain.tags),
        "last": chain.last.run_id,
        "runs": runs,
    }


def _collect(link: Link, runs: dict[str, Any]) -> None:
    if link.run_id in runs:
        return
    read = {
        name: {"digest": digest, "run": before.run_id if before else None}
        for name, (digest, before) in link.read.items()
    }
    bare = asdict(Link(**{**vars(link), "read": {}}))
    runs[link.run_id] = {**bare, "read": read}
    for _, before in link.read.values():
        if before:
            _collect(before, runs)


def _lines(link: Link, indent: str, seen: set[str]) -> Iterator[str]:
    """Each run is told once; where it comes again its name stands alone."""
    named = " ".join([link.stage, *link.tags.values()])
    if link.run_id in seen:
        yield f"{indent}  {named} (above, run {link.run_id})"
        return
    seen.add(link.run_id)
    code = f"git {_short(link.commit)}" if link.commit else "git revision unknown"
    yield f"{indent}  {named} | run {link.run_id} | {link.started} | {code}{_end(link)}"
    for key, value in sorted(link.settings.items()):
        yield f"{indent}      {key} = {value if len(value) <= KEEP else value[:KEEP] + '...'}"
    for name, digest in link.wrote.items():
        yield f"{indent}      wrote {name}: {digest}"
    for name, (digest, before) in link.read.items():
        yield f"{indent}    ← {name}: {digest}" + ("" if before else f" ({LOST})")
        if before:
            yield from _lines(before, indent + "    ", seen)


def _short(commit: str) -> str:
    """Twelve digits; an image that was built from changed files says so (`make image`)."""
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def _end(link: Link) -> str:
    return "" if link.status == "FINISHED" else f" | {link.status}"
