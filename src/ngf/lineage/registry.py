"""The MLflow model registry: one registered model a dataset-attack pair; strangers' as they say."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ngf.errors import InputError
from ngf.lineage import LineageError, current_run_id
from ngf.lineage._client import one_line, prepare_environment, unless_there

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ngf.models import Classifier

ODD = "/:@'\""  # of a model's name: they mean something in its address


def register(
    model: Classifier,
    *,
    name: str,
    alias: str | None,
    tags: Mapping[str, str],
    description: str,
) -> int:
    """Register a model in the run of the stage that is running. Returns the version.

    The model is stored as an exported graph (PT2), not as a pickle: images in [0, 1] of any batch
    size in, logits out, normalisation inside.

    Raises:
        LineageError: MLflow is not reachable or refused.
    """
    prepare_environment()
    run_id = current_run_id()
    try:
        import mlflow
        import numpy as np
        import torch
        from mlflow.models import infer_signature

        # Two images, because an example of one would fix the batch size of the export at one.
        example_NCHW = np.zeros((2, *model.card["input_CHW"]), np.float32)
        with torch.inference_mode():
            logits_NC = model(torch.from_numpy(example_NCHW)).numpy()
        with _left_as_it_is(run_id), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export's, of no use to who promotes
            logged = mlflow.pytorch.log_model(
                model,
                name="model",
                signature=infer_signature(example_NCHW, logits_NC),
                input_example=example_NCHW,
                serialization_format="pt2",
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
                metadata={"classes": model.card["classes"]},
            )
        client = mlflow.MlflowClient()
        _make_room(client, name)
        registered = client.create_model_version(
            name,
            logged.model_uri,
            run_id,
            tags=dict(tags),
            description=description,
            model_id=logged.model_id,
        )
        if alias:
            client.set_registered_model_alias(name, alias, registered.version)
        return int(registered.version)
    except Exception as error:  # MLflow, its HTTP client and its database raise their own kinds
        raise LineageError(one_line(error)) from error


@contextlib.contextmanager
def _left_as_it_is(run_id: str) -> Iterator[None]:
    """The run to log into, which MLflow would end afterwards; who opened it will end it."""
    import mlflow

    with mlflow.start_run(run_id=run_id):
        yield
    mlflow.MlflowClient().update_run(run_id, status="RUNNING")


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
        client.log_artifacts(run_id, str(folder), "model")
        _make_room(client, name)
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


def _make_room(client: MlflowClient, name: str) -> None:
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
