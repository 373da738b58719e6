"""A server that is lost for a while: what was asked of it is asked again."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

from ngf.errors import InputError

SECONDS = 45.0
PAUSE_S, LONGEST_S = 0.5, 5.0
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED")
# Two who write the same tag at once: MLflow's database lets one of them through, the other one's
# request is "bad", and fine when it is asked again. In words of PostgreSQL, SQLite and MySQL; the
# last ones are SQLAlchemy's, of a row that the other one deleted ("expected to update 1 row(s); 0
# were matched").
COLLISIONS = (
    "unique constraint",
    "duplicate entry",
    "deadlock",
    "could not serialize",
    "were matched",
)
CLIENTS = ("urllib3", "botocore", "boto3")  # their errors are no OSErrors
T = TypeVar("T")


class Patience:
    """Seconds that may be lost to failing requests, over all that is kept trying.

    NGF_REGISTRY_PATIENCE sets them, 0 for one try.
    """

    def __init__(self) -> None:
        self._left = _seconds()
        self.tested = False

    def keep(self, step: Callable[[], T]) -> T:
        """The step's result. It may run more than once, so it must be one that may."""
        pause = PAUSE_S
        while True:
            started = time.monotonic()
            try:
                return step()
            except Exception as error:
                self._left -= time.monotonic() - started
                if not _passing(error) or self._left <= 0:
                    raise
                self.tested = True
                time.sleep(min(pause, self._left))
                self._left -= pause
                pause = min(2 * pause, LONGEST_S)


def _seconds() -> float:
    given = os.environ.get("NGF_REGISTRY_PATIENCE", str(SECONDS))
    try:
        return float(given)
    except ValueError as error:
        raise InputError(
            f"NGF_REGISTRY_PATIENCE must be a number of seconds, got '{given}'"
        ) from error


def _passing(error: Exception) -> bool:
    """Whether it may be gone in a moment: a lost server, a locked database, not a refusal."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        collision = any(words in str(error).lower() for words in COLLISIONS)
        return error.error_code in PASSING or collision
    return isinstance(error, OSError) or type(error).__module__.startswith(CLIENTS)
