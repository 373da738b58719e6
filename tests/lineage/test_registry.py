"""Promotion, refusal, rollback, history and serving against a real MLflow."""

import os

import pytest
from conftest import GATE, promotable

from ngf import lineage, stages, store

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path, monkeypatch, database):
    """A folder to promote from, in a database of its own."""
    import shutil

    file = tmp_path / "mlflow.db"
    shutil.copy(database.removeprefix("sqlite:///"), file)
    monkeypatch.setenv("NGF_LINEAGE", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def client(place):
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


NAME = "ngf-colours-badnets"


def measure(folder, test="t" * 32):
    """The run that wrote the evaluation, as `evaluate` would have recorded it."""
    (folder / "test").mkdir(exist_ok=True)
    (folder / "test" / "card.json").write_text(test)
    with lineage.recording(
        "evaluate", {}, {"model": folder / "model", "test": folder / "test"}
    ) as record:
        record.done(stages.Outcome("measured"), {"out": folder / "evaluation"})


def promote(folder, *, gate=None, measured=True, test="t" * 32, inspection=None, **evaluation):
    promotable(folder, **evaluation)
    if measured:
        measure(folder, test)
    paths = {"model": folder / "model", "evaluation": folder / "evaluation"}
    if inspection:
        (folder / "inspection").mkdir(exist_ok=True)
        store.write_json(folder / "inspection" / "curvature.json", inspection)
        paths["inspection"] = folder / "inspection"
    settings = {"gate": {**GATE, **(gate or {})}}
    stages.run("promote", settings=settings, out=folder / "decision.json", **paths)
    return store.read_json(folder / "decision.json")


def tags(client, number, name=NAME):
    return client.get_model_version(name, str(number)).tags


def aliases(client, name=NAME):
    found = client.get_registered_model(name).aliases
    return {alias: int(number) for alias, number in found.items()}


def test_a_better_one_becomes_champion_and_a_worse_one_stays_candidate(place, client):
    first = promote(place, lost=0.010)
    assert first["decision"] == "champion"
    assert aliases(client) == {"champion": 1}
    worse = promote(place, lost=0.015)
    assert (worse["decision"], worse["champion"]) == ("candidate", 1)
    assert aliases(client) == {"champion": 1, "candidate": 2}
    assert tags(client, 2)["ngf.reason"] == "at most 2.50% lost, version 1 at most 2.00%"
    better = promote(place, lost=0.005)
    assert (better["decision"], better["champion"]) == ("champion", 3)
    assert aliases(client) == {"champion": 3}
    assert tags(client, 3)["ngf.previous_champion"] == "1"
    assert tags(client, 1)["ngf.decision"] == "former champion"
    assert tags(client, 1)["ngf.replaced_by"] == "3"
    text = client.get_model_version(NAME, "3").description
    assert text.startswith("**champion**: at most 1.50% lost, version 1 at most 2.00%")
    assert "| ACC | 98.50 (98.00 to 99.00) |" in text
