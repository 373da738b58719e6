"""How this project talks to MLflow: quietly, and without waiting for a dead server for minutes."""

import logging
import os
import warnings

from ngf.lineage import DEFAULT_URI, without_passwords

_DEFAULTS = {
    "MLFLOW_TRACKING_URI": DEFAULT_URI,
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
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


def one_line(error: BaseException) -> str:
    """The first line of an exception, its kind before it, without what lies below a lost server."""
    said = without_passwords(str(error).strip().partition(" (Caused by ")[0])
    lines = said.splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
