"""One version of a registered model, whole or not at all, whatever becomes of the server.

Nothing is visible before it is whole: the files go to a logged model that belongs to no version
yet, and the version appears in one request with all its tags. The tag `ngf.digest` says of what it
was made, so a request whose answer was lost, and a promotion that is run again, find what is there.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngf import champion
from ngf.champion import Snapshot, Version
from ngf.lineage import LineageError, current_run_id
from ngf.lineage._client import one_line, prepare_environment, uploading
from ngf.lineage._patience import Patience
from ngf.lineage.registry import make_room
from ngf.lineage.settle import settle
from ngf.lineage.versions import snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ngf.models import Classifier

DIGEST = "ngf.digest"


@dataclass(frozen=True, kw_only=True)
class Application:
    """What wants to become a version. tags: among them the digest of all that it was made from."""

    name: str
    tags: Mapping[str, str]
    description: str

    @property
    def digest(self) -> str:
        return self.tags[DIGEST]


@dataclass
class _Attempt:
    """What one promotion has written so far."""

    client: MlflowClient
    wanted: Application
    run_id: str
    patience: Patience
    models: list[str] = field(default_factory=list)


def promote(model: Classifier, wanted: Application) -> tuple[Version, Snapshot]:
    """Register a model in the run of the stage that is running, and let the rule decide.

    Returns the version and what the registry says afterwards.

    Raises:
        LineageError: MLflow is not reachable, or refused. What it was sent is taken back as far as
            it answers; a version that it has already is whole, and found by the next promotion.
    """
    prepare_environment()
    run_id = current_run_id()
    attempt: _Attempt | None = None
    version: Version | None = None
    try:
        from mlflow import MlflowClient

        attempt = _Attempt(MlflowClient(), wanted, run_id, Patience())
        version = attempt.patience.keep(lambda: _twin(attempt)) or _register(attempt, model)
        found = settle(attempt.client, wanted.name, attempt.patience)
    except LineageError:
        raise
    except Exception as error:  # MLflow, its HTTP client and its database raise their own kinds
        left = _take_back(attempt, version) if attempt else ""
        raise LineageError(one_line(error) + left) from error
    return found.version(version.number) or version, found


def foresee(wanted: Application) -> tuple[Version, Snapshot, bool]:
    """What `promote` would leave, without writing: the version, the registry, whether it is new.

    Raises:
        LineageError: the registry does not answer.
    """
    prepare_environment()
    try:
        from mlflow import MlflowClient

        found = Snapshot([], {})
        if _there():  # a client makes the file of SQLite
            found = snapshot(MlflowClient(), wanted.name) or found
    except Exception as error:
        raise LineageError(one_line(error)) from error
    for version in found.versions:
        if version.tags.get(DIGEST) == wanted.digest:
            return version, found, False
    number = 1 + max((version.number for version in found.versions), default=0)
    version = Version(number, wanted.tags)
    return version, Snapshot([*found.versions, version], found.aliases, found.rollback), True


def _there() -> bool:
    """Whether there is a registry to read; asking SQLite about a file would make it."""
    from ngf.lineage import tracking_uri

    scheme, _, path = tracking_uri().partition(":///")
    return scheme != "sqlite" or Path(path).exists()


def _register(attempt: _Attempt, model: Classifier) -> Version:
    """A new version. What can fail here, at home, fails before MLflow hears of anything."""
    from ngf.lineage import artifact

    client, wanted, keep = attempt.client, attempt.wanted, attempt.patience.keep
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "model"
        artifact.write(files, model)
        logged = keep(lambda: _logged(attempt))
        location = logged.artifact_location
        artifact.address(files, run_id=attempt.run_id, model_id=logged.model_id, location=location)
        with uploading():
            keep(lambda: client.log_model_artifacts(logged.model_id, str(files)))
    keep(lambda: client.finalize_logged_model(logged.model_id, "READY"))
    keep(lambda: _link(attempt, logged.model_id))
    keep(lambda: make_room(client, wanted.name))
    keep(lambda: _version(attempt, logged.model_id))
    version = keep(lambda: _one_of_twins(attempt))
    if attempt.patience.tested:
        keep(lambda: _sweep(attempt, version))
    if version.passed and version.run_id == attempt.run_id:
        keep(
            lambda: client.set_registered_model_alias(
                wanted.name, champion.CANDIDATE, str(version.number)
            )
        )
    return version


def _logged(attempt: _Attempt) -> Any:
    run = attempt.client.get_run(attempt.run_id)
    logged = attempt.client.create_logged_model(
        run.info.experiment_id,
        name="model",
        source_run_id=attempt.run_id,
        tags={DIGEST: attempt.wanted.digest},
        params=dict(run.data.params),
    )
    attempt.models.append(logged.model_id)
    return logged


def _link(attempt: _Attempt, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    attempt.client.log_outputs(attempt.run_id, [LoggedModelOutput(model_id, 0)])


def _twins(attempt: _Attempt) -> list[Version]:
    """The versions that were made of the same things."""
    found = snapshot(attempt.client, attempt.wanted.name)
    versions = found.versions if found else []
    return [version for version in versions if version.tags.get(DIGEST) == attempt.wanted.digest]


def _twin(attempt: _Attempt | None) -> Version | None:
    assert attempt is not None
    return next(iter(_twins(attempt)), None)


def _version(attempt: _Attempt, model_id: str) -> None:
    """Unless an earlier try has made it and the answer was lost."""
    if any(version.run_id == attempt.run_id for version in _twins(attempt)):
        return
    attempt.client.create_model_version(
        attempt.wanted.name,
        f"models:/{model_id}",
        attempt.run_id,
        tags=dict(attempt.wanted.tags),
        description=attempt.wanted.description,
        model_id=model_id,
    )


def _one_of_twins(attempt: _Attempt) -> Version:
    """Of the same promotion, run twice at once, the first version stays; who made another deletes
    it, and its files."""
    first, *others = _twins(attempt)
    for other in others:
        if other.run_id == attempt.run_id:
            attempt.client.delete_model_version(attempt.wanted.name, str(other.number))
    if first.run_id != attempt.run_id:
        for model_id in attempt.models:
            attempt.client.delete_logged_model(model_id)
    return first


def _sweep(attempt: _Attempt, version: Version) -> None:
    """Delete logged models of this run that no version came of: answers were lost."""
    client = attempt.client
    found = client.get_model_version(attempt.wanted.name, str(version.number))
    run = client.get_run(attempt.run_id)
    for logged in client.search_logged_models([run.info.experiment_id]):
        ours = logged.source_run_id == attempt.run_id
        if ours and logged.model_id != found.model_id and logged.tags.get(DIGEST):
            client.delete_logged_model(logged.model_id)


def _take_back(attempt: _Attempt, version: Version | None) -> str:
    """After the last try. What to add to the message."""
    name = attempt.wanted.name
    if version:
        return f"; {name} version {version.number} is registered and whole: promote it again"
    with contextlib.suppress(Exception):  # the server is gone
        if not _twins(attempt):
            for model_id in attempt.models:
                attempt.client.delete_logged_model(model_id)
    return "; nothing is registered by a name, promote again"
