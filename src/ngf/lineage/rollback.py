"""Champion goes back to another version, because somebody says so."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from ngf import champion
from ngf.champion import CHAMPION, Rollback, Snapshot, Version
from ngf.errors import InputError
from ngf.lineage import LineageError
from ngf.lineage._client import one_line, prepare_environment
from ngf.lineage._patience import Patience
from ngf.lineage._who import user
from ngf.lineage.settle import now, settle
from ngf.lineage.versions import asked, numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient


def rollback(name: str, *, to: int | None, reason: str) -> tuple[int, int]:
    """Make an earlier champion, or a version that passed the gate, champion. Returns (from, to).

    The version that is left does not come back by the rule; what is registered from now on is
    compared with the new champion.

    Raises:
        InputError: no such model or version, or none that may be champion; nothing is changed.
        LineageError: MLflow is not reachable or refused.
    """
    prepare_environment()
    try:
        from mlflow import MlflowClient

        client, patience = MlflowClient(), Patience()
        found = patience.keep(lambda: asked(client, name))
        left, chosen = _chosen(name, found, to)
        said = Rollback(
            to=chosen.number,
            left=left.number,
            after=max(version.number for version in found.versions),
            at=now(),
            by=user(),
            reason=reason,
        )
        patience.keep(lambda: _record(client, name, said, chosen))
        settle(client, name, patience)
        return left.number, chosen.number
    except (InputError, LineageError):
        raise
    except Exception as error:  # MLflow, its HTTP client and its database raise their own kinds
        raise LineageError(f"{one_line(error)}; run it again") from error


def _chosen(name: str, found: Snapshot, to: int | None) -> tuple[Version, Version]:
    """The champion, and the version that takes its place."""
    left = found.version(found.aliases.get(CHAMPION))
    if left is None:
        raise InputError(f"{name} has no champion to roll back from")
    previous = left.tags.get("ngf.previous_champion")
    possible = [v for v in found.versions if _may(v, previous) and v is not left]
    there = ", ".join(str(version.number) for version in possible) or "none"
    if to is None:
        if previous is None:
            raise InputError(
                f"{name} version {left.number} had no champion before it; --to: {there}"
            )
        to = int(previous)
    if to == left.number:
        raise InputError(f"{name} version {to} is the champion; --to can be: {there}")
    version = found.version(to)
    if version is None:
        raise InputError(f"{name} has no version {to}: there is {numbers(found)}")
    if version not in possible:
        why = version.tags.get("ngf.reason", "it was never judged")
        raise InputError(f"{name} version {to} did not pass the gate: {why}; --to can be: {there}")
    return left, version


def _may(version: Version, previous: str | None) -> bool:
    return version.passed or version.was_champion or str(version.number) == previous


def _record(client: MlflowClient, name: str, said: Rollback, chosen: Version) -> None:
    """On the model first: from then on everybody's rule knows of it."""
    client.set_registered_model_tag(name, champion.ROLLBACK, json.dumps(asdict(said)))
    marks = {"at": said.at, "by": said.by, "because": said.reason}
    for key, value in marks.items():
        client.set_model_version_tag(name, str(said.left), f"ngf.rolled_back_{key}", value)
        if f"ngf.rolled_back_{key}" in chosen.tags:
            client.delete_model_version_tag(name, str(chosen.number), f"ngf.rolled_back_{key}")
