"""From a model back to data, attack, seeds, settings and code, by digests, from MLflow alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ngf.errors import InputError
from ngf.lineage import LineageError
from ngf.lineage._client import absent, one_line, prepare_environment

if TYPE_CHECKING:
    from mlflow import MlflowClient

WROTE = "ngf.wrote."  # + digest: the tag by which a reader finds the writer
FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID"


@dataclass
class Link:
    """One run. read: {argument: (digest, who wrote it)}; wrote: {argument: digest}."""

    run_id: str
    stage: str
    started: str
    status: str
    commit: str | None
    settings: dict[str, str]
    tags: dict[str, str]
    wrote: dict[str, str]
    read: dict[str, tuple[str, Link | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Chain:
    """What was asked for. version: of a registered model, its tags."""

    address: str
    version: tuple[str, int] | None
    tags: Mapping[str, str]
    last: Link


def trace(address: str) -> Chain:
    """Follow a registered model, or a run, back to where its data came from.

    Raises:
        InputError: nothing is there; says what is. LineageError: MLflow is not reachable.
    """
    prepare_environment()
    try:
        from mlflow import MlflowClient

        client = MlflowClient()
        version, tags, run_id = _resolved(client, address)
        links: dict[str, Link] = {}
        return Chain(address, version, tags, _followed(client, run_id, links))
    except InputError:
        raise
    except Exception as error:  # MLflow, its HTTP client and its database raise their own kinds
        raise LineageError(one_line(error)) from error


def _resolved(
    client: MlflowClient, address: str
) -> tuple[tuple[str, int] | None, Mapping[str, str], str]:
    from ngf.lineage.versions import asked, numbers

    scheme, _, rest = address.partition(":/")
    name, at, alias = rest.lstrip("/").partition("@")
    if scheme == "runs" and rest:
        return None, {}, _run(client, rest.lstrip("/").partition("/")[0])
    if not at:
        name, _, alias = name.rpartition("/")
    if scheme != "models" or not name or not alias:
        raise InputError(f"'{address}' is no address: give {FORMS}")
    found = asked(client, name)
    known = found.aliases.get(alias) if at else int(alias) if alias.isdecimal() else None
    version = found.version(known)
    if version is None:
        there = ", ".join(f"@{one}" for one in sorted(found.aliases))
        raise InputError(
            f"no {address}: {name} has versions {numbers(found)} and aliases {there or 'none'}"
        )
    if not version.run_id:
        raise InputError(f"{address} was registered without a run, so nothing leads back from it")
    return (name, version.number), version.tags, version.run_id


def _run(client: MlflowClient, run_id: str) -> str:
    try:
        return str(client.get_run(run_id).info.run_id)
    except Exception as error:
        if absent(error) or getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
            raise InputError(f"no run '{run_id}' in MLflow") from error
        raise


def _followed(client: MlflowClient, run_id: str, links: dict[str, Link]) -> Link:
    """The run and all before it; each once."""
    if run_id in links:
        return links[run_id]
    run = client.get_run(run_id)
    link = links[run_id] = _link(run)
    for name, digest in read_by(run).items():
        before = writer(client, digest, before_ms=run.info.start_time)
        known = before is not None and before.info.run_id != run_id
        link.read[name] = (
            digest,
            _followed(client, before.info.run_id, links) if before and known else None,
        )
    return link


def _link(run: Any) -> Link:
    tags = run.data.tags
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    return Link(
        run_id=run.info.run_id,
        stage=tags.get("ngf.stage", run.info.run_name),
        started=started.isoformat(timespec="seconds"),
        status=run.info.status,
        commit=tags.get("mlflow.source.git.commit"),
        settings=dict(run.data.params),
        tags={k: v for k, v in tags.items() if not k.startswith(("mlflow.", "ngf."))},
        wrote=_inputs(run, "wrote"),
    )


def writer(client: MlflowClient, digest: str, before_ms: int | None = None) -> Any:
    """The latest run that wrote these bytes (and had begun by then); None where none is known."""
    query = f"tags.`{WROTE}{digest}` != ''"
    if before_ms is not None:
        query += f" and attributes.start_time <= {before_ms}"
    found = client.search_runs(
        _experiments(client), query, max_results=1, order_by=["attributes.start_time DESC"]
    )
    return found[0] if found else None


def _experiments(client: MlflowClient) -> list[str]:
    """All of them: a team may train in one and promote in another."""
    from ngf.lineage.versions import pages

    return [one.experiment_id for one in pages(client.search_experiments)]


def read_by(run: Any) -> dict[str, str]:
    """{argument: digest} of what the run read."""
    return _inputs(run, "read")


def _inputs(run: Any, context: str) -> dict[str, str]:
    return {
        one.dataset.name: one.dataset.digest
        for one in run.inputs.dataset_inputs
        if any(t.key == "mlflow.data.context" and t.value == context for t in one.tags)
    }
