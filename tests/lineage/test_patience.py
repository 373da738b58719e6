"""What is asked again and what is not, told by MLflow's own errors."""

import pytest

from ngf.lineage import _patience
from ngf.lineage._patience import Patience

pytestmark = pytest.mark.slow  # for the import of MLflow

GONE = "UPDATE statement on table 'registered_model_aliases' expected to update 1 row(s); {}"


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(_patience, "PAUSE_S", 0.001)


def failing(message, code, times=1):
    """A step that fails so often and then says how often it was tried."""
    from mlflow.exceptions import RestException

    tries: list[int] = []

    def step():
        tries.append(1)
        if len(tries) <= times:
            raise RestException({"error_code": code, "message": message})
        return len(tries)

    return step, tries


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (GONE.format("0 were matched."), "BAD_REQUEST"),
        (GONE.format("Only 0 were matched."), "BAD_REQUEST"),
        ("UNIQUE constraint failed: model_version_tags.key", "BAD_REQUEST"),
        ("deadlock detected", "BAD_REQUEST"),
        ("the server is starting", "TEMPORARILY_UNAVAILABLE"),
    ],
)
def test_two_who_write_the_same_at_once_ask_again(message, code):
    step, _ = failing(message, code, times=2)
    assert Patience().keep(step) == 3


def test_a_refusal_is_not_asked_again():
    step, tries = failing("Invalid value", "INVALID_PARAMETER_VALUE")
    with pytest.raises(Exception, match="Invalid value"):
        Patience().keep(step)
    assert len(tries) == 1


def test_without_patience_there_is_one_try(monkeypatch):
    monkeypatch.setenv("NGF_REGISTRY_PATIENCE", "0")
    step, tries = failing("deadlock detected", "BAD_REQUEST")
    with pytest.raises(Exception, match="deadlock"):
        Patience().keep(step)
    assert len(tries) == 1
