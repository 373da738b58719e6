"""The versions of a registered model as the registry holds them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ngf.champion import Rollback, Snapshot, Version
from ngf.errors import InputError
from ngf.lineage._client import absent
from ngf.lineage.registry import ODD

if TYPE_CHECKING:
    from mlflow import MlflowClient


def snapshot(client: MlflowClient, name: str) -> Snapshot | None:
    """All versions, then aliases and the last rollback; None where nothing has this name.

    The order matters: an alias that is read after the versions is at least as new as they are.
    """
    versions = [
        Version(int(found.version), dict(found.tags), found.run_id or "")
        for found in pages(partial(client.search_model_versions, f"name = '{name}'"))
    ]
    try:
        model = client.get_registered_model(name)
    except Exception as error:
        if absent(error):
            return None
        raise
    aliases = {alias: int(number) for alias, number in model.aliases.items()}
    return Snapshot(
        sorted(versions, key=lambda version: version.number), aliases, Rollback.read(model.tags)
    )


def asked(client: MlflowClient, name: str) -> Snapshot:
    """The same; `InputError` that says which names there are where it is none of them."""
    odd = set(name) & set(ODD)
    found = None if odd else snapshot(client, name)
    if found is None:
        names = [
            model.name for model in pages(partial(client.search_registered_models, "name != ''"))
        ]
        raise InputError(
            f"no registered model '{name}': there is {', '.join(sorted(names)) or 'none yet'}"
        )
    return found


def numbers(found: Snapshot) -> str:
    """The versions that exist, for a message."""
    return ", ".join(str(version.number) for version in found.versions) or "none"


def pages(search: Callable[..., Any]) -> list[Any]:
    """All that a search of MLflow's client finds, page after page."""
    found, token = [], None
    while True:
        page = search(page_token=token)
        found += page
        token = page.token
        if not token:
            return found
