"""How this project talks to MLflow: quietly, and without waiting for a dead server for minutes."""

import contextlib
import logging
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator

from ngf.lineage import DEFAULT_URI, UPLOAD_S, without_passwords

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_DEFAULTS = {
    "MLFLOW_TRACKING_URI": DEFAULT_URI,
    "MLFLOW_DISABLE_TELEMETRY": "true",
    TIMEOUT: "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def prepare_environment() -> None:
    """Defaults for what the user did not set; to be called before MLflow is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module="mlflow")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def uploading() -> Iterator[None]:
    """Inside, an answer may take as long as an upload, and as the user allows if that is longer.

    MLflow's server answers when it has passed the last byte on to its own store.
    """
    before = os.environ[TIMEOUT]
    os.environ[TIMEOUT] = str(max(int(before), UPLOAD_S))
    try:
        yield
    finally:
        os.environ[TIMEOUT] = before


def unless_there(create: Callable[[], object]) -> None:
    """Create, unless somebody else was faster since it was looked for."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def absent(error: BaseException) -> bool:
    """Whether MLflow says that there is no such thing."""
    return getattr(error, "error_code", None) in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


def again(write: Callable[[], object], times: int = 5) -> None:
    """Write, and try again after a short pause of chance where MLflow refuses."""
    from mlflow.exceptions import MlflowException

    for left in reversed(range(times)):
        try:
            write()
            return
        except MlflowException:
            if not left:
                raise
            time.sleep(random.uniform(0.05, 0.5))


def one_line(error: BaseException) -> str:
    """The first line of an exception, its kind before it, without what lies below a lost server."""
    said = without_passwords(str(error).strip().partition(" (Caused by ")[0])
    lines = said.splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
