"""Make aliases and tags say what the rule says, whoever else is at it."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from ngf import champion
from ngf.champion import Change, Snapshot
from ngf.evidence import description
from ngf.lineage import LineageError
from ngf.lineage._client import absent
from ngf.lineage._patience import Patience
from ngf.lineage.versions import snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROUNDS = 100


def settle(client: MlflowClient, name: str, patience: Patience) -> Snapshot:
    """Change what differs from `ngf.champion`'s rule until nothing does. Returns what is then.

    A process that changes something looks again afterwards. So after the last change of all
    somebody has seen every version, and found that aliases and tags fit them.
    """
    for _ in range(ROUNDS):
        found = patience.keep(lambda: snapshot(client, name))
        if found is None:
            raise LineageError(f"somebody has deleted {name}")
        wanted = champion.changes(found, now())
        if not wanted:
            return found
        for change in wanted:
            _apply(client, name, change, found, patience)
        time.sleep(random.uniform(0, 0.2))  # others are at it too
    raise LineageError(f"{name} does not come to rest: somebody keeps changing its aliases")


def now() -> str:
    """The time as tags hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _apply(
    client: MlflowClient, name: str, change: Change, found: Snapshot, patience: Patience
) -> None:
    """A version that somebody has deleted in between has no tags to set; the next look sees it."""
    number = str(change.number)
    try:
        if change.alias and change.number is None:
            patience.keep(lambda: client.delete_registered_model_alias(name, str(change.alias)))
        elif change.alias:
            patience.keep(
                lambda: client.set_registered_model_alias(name, str(change.alias), number)
            )
        else:
            _tell(client, name, change, found, patience)
    except Exception as error:
        if not absent(error):
            raise


def _tell(
    client: MlflowClient, name: str, change: Change, found: Snapshot, patience: Patience
) -> None:
    """Tags, the decision last: who finds it missing tells everything again."""
    version, new = found.version(change.number), dict(change.tags or {})
    number = str(change.number)
    decision = new.pop("ngf.decision")
    for key, value in [*new.items(), ("ngf.decision", decision)]:
        patience.keep(partial(client.set_model_version_tag, name, number, key, value))
    text = description({**(version.tags if version else {}), **new, "ngf.decision": decision})
    patience.keep(lambda: client.update_model_version(name, number, text))
