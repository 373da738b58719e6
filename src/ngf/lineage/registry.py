"""Files into the MLflow model registry as they are, and out of it; models of strangers."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ngf.errors import InputError
from ngf.lineage import LineageError, current_run_id
from ngf.lineage._client import one_line, prepare_environment, unless_there, uploading

if TYPE_CHECKING:
    from mlflow import MlflowClient

ODD = "/:@'\""  # of a model's name: they mean something in its address


def register_files(folder: Path, *, name: str, tags: Mapping[str, str], description: str) -> int:
    """Register the files in a folder as they are, in the run that is recorded. Returns the version.

    Raises:
        LineageError: MLflow is not reachable or refused.
    """
    prepare_environment()
    run_id = current_run_id()
    try:
        from mlflow import MlflowClient

        client = MlflowClient()
        with uploading():
            client.log_artifacts(run_id, str(folder), "model")
        make_room(client, name)
        registered = client.create_model_version(
            name, f"runs:/{run_id}/model", run_id, tags=dict(tags), description=description
        )
        return int(registered.version)
    except Exception as error:  # MLflow, its HTTP client and its database raise their own kinds
        raise LineageError(one_line(error)) from error


def check_name(name: str) -> None:
    """`InputError` where no registered model can have this name."""
    if not name.strip() or set(name) & set(ODD):
        said = " ".join(ODD)
        raise InputError(f"--register '{name}': a registered model's name holds none of {said}")


def check(name: str) -> None:
    """`LineageError` unless there is a run to register in and a registry that answers."""
    prepare_environment()
    current_run_id()
    try:
        from mlflow import MlflowClient

        _known(MlflowClient(), name)
    except Exception as error:  # MLflow, its HTTP client and its database raise their own kinds
        raise LineageError(one_line(error)) from error


def _known(client: MlflowClient, name: str) -> bool:
    return bool(client.search_registered_models(f"name = '{name}'"))


def make_room(client: MlflowClient, name: str) -> None:
    if not _known(client, name):
        unless_there(lambda: client.create_registered_model(name))


def fetch(uri: str) -> Path:
    """The files of a registered model or of a run, downloaded; nothing in them is loaded.

    They lie in a temporary folder that goes with the process.

    Raises:
        LineageError: MLflow is not reachable, or knows no such thing.
    """
    prepare_environment()
    folder = tempfile.mkdtemp(prefix="ngf-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        import mlflow

        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
    except Exception as error:  # MLflow, its HTTP client and its database raise their own kinds
        raise LineageError(one_line(error)) from error
