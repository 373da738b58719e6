"""Lineage against a real MLflow: SQLite, and a server that is not there."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import GATE, ROOT, colour_split, promotable

from ngf import stages, store

pytestmark = pytest.mark.slow


@pytest.fixture
def tracked(tmp_path, monkeypatch, database):
    monkeypatch.setenv("NGF_LINEAGE", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.chdir(tmp_path)
    store.save_split(tmp_path / "train", colour_split(60, 0))
    return tmp_path


def runs(folder, database):
    from mlflow import MlflowClient

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name(folder.name)
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])


def plant(folder, out="poison"):
    options = {"target": 0, "poison_rate": 0.1, "alpha": 0.2, "seed": 0}
    train, out = folder / "train", folder / out
    stages.run("poison", settings={"options": options}, train=train, attack="blend", out=out)


def train_victim(folder):
    recipe = {
        "arch": "resnet",
        "model": {"depth": 18, "width": 2, "stem_stride": 2},
        "epochs": 1,
        "batch_size": 32,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "shift": 0,
        "reference_seed": 0,
        "victim_seed": 1,
    }
    paths = {name: folder / name for name in ("train", "poison")}
    writes = {"out": folder / "victim", "trigger": folder / "trigger"}
    stages.run("train", settings={"recipe": recipe}, dataset="colours", **paths, **writes)


def test_a_stage_is_a_run_whose_parent_wrote_what_it_reads(tracked, database):
    plant(tracked)
    train_victim(tracked)
    first, second = runs(tracked, database)
    assert first.info.run_name == "poison colours blend"
    assert second.info.run_name == "train colours blend victim"
    assert first.info.status == second.info.status == "FINISHED"
    assert second.data.tags["mlflow.parentRunId"] == first.info.run_id
    assert first.data.params["options.alpha"] == "0.2"
    assert first.data.metrics["images_poisoned"] == 6
    assert first.data.metrics["stage_seconds"] > 0
    assert first.data.tags["attack"] == "blend"
    inputs = {
        (i.dataset.name, i.dataset.digest, i.tags[0].value) for i in second.inputs.dataset_inputs
    }
    assert inputs == {
        ("train", store.digest(tracked / "train"), "read"),
        ("poison", store.digest(tracked / "poison"), "read"),
        ("out", store.digest(tracked / "victim"), "wrote"),
        ("trigger", store.digest(tracked / "trigger"), "wrote"),
    }


def test_recording_changes_no_byte(tracked, monkeypatch):
    plant(tracked)
    monkeypatch.setenv("NGF_LINEAGE", "off")
    plant(tracked, "poison2")
    assert store.digest(tracked / "poison") == store.digest(tracked / "poison2")


def test_a_failed_stage_is_a_failed_run(tracked, database):
    bad = {"target": 9, "poison_rate": 0.1, "alpha": 0.2, "seed": 0}
    with pytest.raises(ValueError, match="target"):
        stages.run(
            "poison",
            settings={"options": bad},
            train=tracked / "train",
            attack="blend",
            out=tracked / "poison",
        )
    (run,) = runs(tracked, database)
    assert run.info.status == "FAILED"
    assert "target must lie between" in run.data.tags["mlflow.note.content"]


def test_a_run_that_somebody_else_opened_is_used_and_left_open(tracked, database, monkeypatch):
    from mlflow import MlflowClient

    client = MlflowClient(database)
    experiment = client.create_experiment(f"{tracked.name}-other")
    given = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    plant(tracked)
    run = client.get_run(given)
    assert run.info.status == "RUNNING"
    assert run.data.metrics["images_poisoned"] == 6


def test_a_promotion_too_leaves_such_a_run_open(tracked, database, monkeypatch):
    """As under Kubeflow's MLflow plugin, which ends the run itself."""
    from mlflow import MlflowClient

    client = MlflowClient(database)
    given = client.create_run(client.create_experiment(f"{tracked.name}-plugin")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    promotable(tracked)
    paths = {name: tracked / name for name in ("model", "evaluation")}
    stages.run("promote", settings={"gate": GATE}, out=tracked / "decision.json", **paths)
    assert client.get_run(given).info.status == "RUNNING"
    versions = client.search_model_versions(f"run_id = '{given}'")
    assert [version.name for version in versions] == ["ngf-colours-badnets"]


def ended_by(number):
    """The exit code of a stage that gets the signal while it works."""
    code = (
        "import time; from ngf import lineage\n"
        "with lineage.recording('poison', {}, {}) as record:\n"
        "    record.run_id(); print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "open\n"
        process.send_signal(number)
    return process.returncode


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -2)])
def test_a_stage_that_is_told_to_end_is_a_killed_run_before_it_has_ended(
    number, code, tracked, database
):
    assert ended_by(number) == code
    (run,) = runs(tracked, database)
    assert run.info.status == "KILLED"


def test_a_killed_stage_is_a_killed_run(tracked, database):
    assert ended_by(signal.SIGKILL) == -signal.SIGKILL
    for _ in range(100):
        (run,) = runs(tracked, database)
        if run.info.status != "RUNNING":
            break
        time.sleep(0.1)
    assert run.info.status == "KILLED"


def test_work_goes_on_without_mlflow_and_says_so(tracked, monkeypatch, capfd):
    monkeypatch.setenv("NGF_REGISTRY_PATIENCE", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    plant(tracked)
    assert store.load_poison(tracked / "poison", colour_split(60, 0)).rows_P.shape == (6,)
    said = capfd.readouterr().err
    assert "this run is not in MLflow (http://127.0.0.1:9)" in said
    assert said.count("\n") == 1


def test_only_this_room_knows_mlflow():
    found = subprocess.run(
        ["grep", "-rlE", r"^\s*(import|from) mlflow", "--include=*.py", "src", "components"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert found
    assert all(os.path.dirname(name) == "src/ngf/lineage" for name in found)
