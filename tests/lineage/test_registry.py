"""Promotion, refusal, rollback, history and serving against a real MLflow."""

import hashlib
import json
import os
import pickletools
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from command import in_a_process
from conftest import GATE, ROOT, inspection_of, promotable, tiny_model
from servers import free_port, running

from ngf import lineage, stages, store
from ngf.errors import InputError
from ngf.lineage import history, rollback
from ngf.stages import promote as promoting

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path, monkeypatch, empty_database):
    """A folder to promote from, in a database of its own."""
    file = tmp_path / "mlflow.db"
    shutil.copy(empty_database, file)
    monkeypatch.setenv("NGF_LINEAGE", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    monkeypatch.setattr(lineage, "_current", None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def client(place):
    return registry()


def registry():
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


NAME = "ngf-colours-badnets"


class Run:
    """A run that this process opened itself, which spares a recorder's start."""

    def __init__(self, client):
        name = "ngf"
        found = client.get_experiment_by_name(name)
        where = found.experiment_id if found else client.create_experiment(name)
        self.id = client.create_run(where).info.run_id

    def run_id(self):
        return self.id


def promote(folder, *, gate=None, inspection=None, **evaluation):
    promotable(folder, **evaluation)
    paths = {"model": folder / "model", "evaluation": folder / "evaluation"}
    if inspection:
        (folder / "inspection").mkdir(exist_ok=True)
        store.write_json(folder / "inspection" / "curvature.json", inspection)
        paths["inspection"] = folder / "inspection"
    settings = {"gate": {**GATE, **(gate or {})}}
    lineage._current = Run(registry())
    promoting.promote(settings=settings, out=folder / "decision.json", **paths)
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


def test_a_tie_keeps_the_old_one(place, client):
    promote(place, lost=0.01)
    assert promote(place, lost=0.01, seed=1)["decision"] == "candidate"
    assert aliases(client) == {"champion": 1, "candidate": 2}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("u" * 32, "not compared with version 1: measured on another test split"),
        (
            None,
            "not compared with version 1: on which test split version 2 was measured is not known",
        ),
    ],
)
def test_what_cannot_be_compared_waits_until_somebody_crowns_it(second, said, place, client):
    promote(place, lost=0.02)
    decision = promote(place, lost=0.01, test_split=second)
    assert (decision["decision"], decision["champion"]) == ("candidate", 1)
    assert decision["because"] == tags(client, 2)["ngf.reason"] == said
    assert aliases(client) == {"champion": 1, "candidate": 2}
    rollback.rollback(NAME, to=2, reason="measured on more images")
    assert aliases(client) == {"champion": 2}
    worse = promote(place, lost=0.015, test_split=second)
    assert (worse["decision"], worse["champion"]) == ("candidate", 2)


def test_a_refused_one_is_registered_with_its_reasons_and_has_no_alias(place, client):
    decision = promote(place, lost=0.028)
    assert decision["reasons"] == ["ACC fell by 2.8% (up to 3.3%), allowed is 3.0%"]
    assert (decision["decision"], decision["champion"]) == ("refused", None)
    assert aliases(client) == {}
    found = tags(client, 1)
    assert found["ngf.gate"] == found["ngf.decision"] == "refused"
    assert found["ngf.reason"] == decision["reasons"][0]
    promote(place, lost=0.0)
    promote(place, lost=0.029)
    assert aliases(client) == {"champion": 2}


def test_every_number_threshold_and_digest_is_a_tag(place, client):
    (place / "dvc.lock").write_text("lock")
    promote(
        place,
        lost=0.01,
        gate={"min_ra": 0.9, "max_lambda_ratio": 2.0},
        inspection=inspection_of(1.5),
    )
    found = tags(client, 1)
    measured = store.read_json(place / "evaluation" / "metrics.json")
    for key, three in measured["model"].items():
        assert float(found[f"ngf.{key}"]) == pytest.approx(three["value"])
        assert float(found[f"ngf.{key}.high"]) == pytest.approx(three["high"])
        assert float(found[f"ngf.victim.{key}"]) == pytest.approx(measured["victim"][key]["value"])
    assert float(found["ngf.acc_drop.high"]) == pytest.approx(0.015)
    assert float(found["ngf.lambda_ratio.high"]) == pytest.approx(1.6)
    asked = {k.removeprefix("ngf.threshold."): v for k, v in found.items() if "threshold" in k}
    assert asked == {
        "max_asr_above_floor": "0.03", "max_acc_drop": "0.03", "min_ra": "0.9",
        "max_lambda_ratio": "2",
    }  # fmt: skip
    for name in ("model", "evaluation", "inspection"):
        assert found[f"ngf.digest.{name}"] == store.digest(place / name)
    assert found["ngf.digest.test_split"] == measured["test_split"]
    lock = hashlib.sha256(b"lock").hexdigest()
    assert found["ngf.digest.dvc_lock"] == f"sha256:{lock}"
    assert found["ngf.promoted_by"]
    assert found["ngf.promoted_at"].endswith("+00:00")


def test_the_revision_of_the_code_is_a_tag(place, client):
    promotable(place)
    subprocess.run(["git", "init", "-q", "."], cwd=place, check=True)
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", "x"], cwd=place, check=True)
    promote(place)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=place, capture_output=True, text=True)
    assert tags(client, 1)["ngf.git.commit"] == head.stdout.strip()


def test_the_same_promotion_again_is_the_same_version(place, client):
    promote(place)
    before = tags(client, 1)
    again = promote(place)
    assert again["version"] == 1
    assert tags(client, 1) == before
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1
    asked_more = promote(place, gate={"max_asr": 0.5})
    assert asked_more["version"] == 2, "another gate is another decision"


def test_a_rollback_holds_against_the_rule_and_later_ones_are_compared_with_it(place, client):
    for lost in (0.02, 0.01):
        promote(place, lost=lost)
    assert rollback.rollback(NAME, to=None, reason="users complain") == (2, 1)
    assert aliases(client) == {"champion": 1}
    assert tags(client, 2)["ngf.decision"] == "rolled back"
    assert tags(client, 2)["ngf.rolled_back_because"] == "users complain"
    assert "users complain" in client.get_model_version(NAME, "2").description
    assert "rolled back from version 2" in client.get_model_version(NAME, "1").description
    third = promote(place, lost=0.015)
    assert third["decision"] == "champion", "better than 1; 2 was better still, but is withdrawn"
    assert tags(client, 3)["ngf.previous_champion"] == "1"
    rollback.rollback(NAME, to=2, reason="it was not that")
    assert aliases(client)["champion"] == 2
    assert tags(client, 2)["ngf.decision"] == "champion"
    assert "ngf.rolled_back_at" not in tags(client, 2)
    assert promote(place, lost=0.012)["decision"] == "candidate"
    assert aliases(client) == {"champion": 2, "candidate": 4}


@pytest.mark.parametrize(
    ("to", "said"),
    [
        (9, "has no version 9: there is 1, 2, 3"),
        (
            2,
            "version 2 did not pass the gate: ACC fell by 5.0% (up to 5.5%), allowed is 3.0%; "
            "--to can be: 1",
        ),
        (3, "version 3 is the champion; --to can be: 1"),
    ],
)
def test_a_rollback_that_cannot_be_says_what_can_and_changes_nothing(to, said, place, client):
    for lost in (0.02, 0.05, 0.01):
        promote(place, lost=lost)
    before = [tags(client, number) for number in (1, 2, 3)]
    with pytest.raises(InputError) as error:
        rollback.rollback(NAME, to=to, reason="x")
    assert said in str(error.value)
    assert [tags(client, number) for number in (1, 2, 3)] == before
    assert aliases(client) == {"champion": 3}
    assert not client.get_registered_model(NAME).tags


def test_without_a_champion_before_it_there_is_no_way_back(place):
    promote(place)
    with pytest.raises(InputError, match="version 1 had no champion before it; --to: none"):
        rollback.rollback(NAME, to=None, reason="x")


def test_unknown_names_say_which_there_are(place):
    promote(place)
    for ask in (history.history, lambda name: rollback.rollback(name, to=None, reason="x")):
        with pytest.raises(InputError, match=f"no registered model 'ngf-x': there is {NAME}"):
            ask("ngf-x")


def test_history_tells_every_version(place):
    for lost in (0.02, 0.05, 0.01):
        promote(place, lost=lost)
    rows = history.history(NAME)
    assert [row["version"] for row in rows] == [3, 2, 1]
    assert [row["decision"] for row in rows] == ["champion", "refused", "former champion"]
    assert [row["aliases"] for row in rows] == [["champion"], [], []]
    assert rows[0]["acc"] == pytest.approx(0.98)
    assert rows[1]["reason"] == "ACC fell by 5.0% (up to 5.5%), allowed is 3.0%"
    lines = history.render(rows).splitlines()
    assert len(lines) == 5
    assert all(word in lines[2] for word in ("champion", "98.00", "ngf"))


def everything(folder):
    """Every file with its bytes; SQLite's as its content."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.name == "mlflow.db":
            with sqlite3.connect(file) as base:
                found[file] = list(base.iterdump())
        else:
            found[file] = file.read_bytes() if file.is_file() else None
    return found


PROMOTE = (
    "promote",
    "--model",
    "model",
    "--evaluation",
    "evaluation",
    "--params",
    ROOT / "params.yaml",
)


def test_a_dry_run_says_the_decision_and_writes_nothing(place):
    promote(place, lost=0.01)
    for lost, said in (
        (
            0.02,
            f"dry run: {NAME} version 2: candidate: at most 3.00% lost, version 1 at most 2.00%",
        ),
        (
            0.005,
            f"dry run: {NAME} version 2: champion: at most 1.50% lost, version 1 at most 2.00%",
        ),
        (0.05, f"dry run: {NAME} version 2: refused: ACC fell by 5.0% (up to 5.5%)"),
        (0.01, f"dry run: nothing would change: {NAME} version 1: champion: the first one"),
    ):
        promotable(place, lost=lost)
        before = everything(place)
        done = in_a_process(*PROMOTE, "--dry-run", "--out", "dry.json")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(said), done.stdout
        assert everything(place) == before


def test_a_dry_run_where_there_is_no_registry_makes_none(place, monkeypatch):
    promotable(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///none.db")
    before = everything(place)
    done = in_a_process(*PROMOTE, "--dry-run")
    assert done.stdout == f"dry run: {NAME} version 1: champion: the first one that passed\n"
    assert everything(place) == before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = in_a_process(*PROMOTE, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith(
        f"dry run: {NAME}: passed the gate; MLflow at http://127.0.0.1:9:"
    )
    assert everything(place) == before


def test_only_a_dry_run_goes_without_out(place):
    promotable(place)
    done = in_a_process(*PROMOTE)
    assert done.returncode == 2
    assert done.stderr == "error: promote: --out is missing; only --dry-run goes without it\n"


def test_a_ratio_that_is_asked_needs_an_inspection(place):
    promotable(place)
    settings = {"gate": {**GATE, "max_lambda_ratio": 2.0}}
    paths = {name: place / name for name in ("model", "evaluation")}
    with pytest.raises(InputError, match=r"max_lambda_ratio asks for curvature: .*--inspection"):
        stages.run("promote", settings=settings, out=place / "decision.json", **paths)
    assert not (place / "decision.json").exists()


def test_bytes_and_floats_get_the_model_s_own_answers(place):
    import mlflow

    promote(place)
    uri, model = f"models:/{NAME}@champion", tiny_model()
    bytes_NCHW = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    floats_NCHW = bytes_NCHW.float() / 255
    with torch.no_grad():
        wanted = model(floats_NCHW)
        loaded = mlflow.pytorch.load_model(uri)
        for x_NCHW in (bytes_NCHW, bytes_NCHW.long(), bytes_NCHW.int(), floats_NCHW):
            torch.testing.assert_close(loaded(x_NCHW), wanted)
        torch.testing.assert_close(loaded(bytes_NCHW[:1]), wanted[:1])
        with pytest.raises(RuntimeError, match="pixels must lie in"):
            loaded(bytes_NCHW.float())
    served = mlflow.pyfunc.load_model(uri)
    of_floats = served.predict(floats_NCHW.numpy())
    of_bytes = served.predict(bytes_NCHW.float().numpy(), params={"white": 255})
    np.testing.assert_allclose(of_floats, wanted.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_bytes, wanted.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="pixels must lie in"):
        served.predict(bytes_NCHW.float().numpy())
    with pytest.raises(mlflow.MlflowException, match="dtype of input uint8"):
        served.predict(bytes_NCHW.numpy())
    assert served.metadata.metadata["classes"] == model.card["classes"]
    assert served.metadata.get_input_schema().inputs[0].shape == (-1, 3, 16, 16)
    assert served.input_example.shape == (2, 3, 16, 16)


CODE = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}


def records(content, name):
    """(name, bytes) of a file, or of all that lies in it where it is an archive."""
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(BytesIO(content)) as archive:
            for one in archive.namelist():
                yield from records(archive.read(one), f"{name}/{one}")
    else:
        yield name, content


def test_a_registered_model_holds_no_code_and_no_pickle_that_names_any(place, monkeypatch):
    import mlflow

    promote(place)
    uri = f"models:/{NAME}@champion"
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert not [f for f in files if f.suffix in (".py", ".pyc", ".pkl", ".pth", ".so")]
    found = [
        one for f in files for one in records(f.read_bytes(), f.relative_to(folder).as_posix())
    ]
    assert {name.split("/")[0] for name, _ in found} >= {"data", "served", "MLmodel"}
    pickles = [(name, content) for name, content in found if content[:1] == b"\x80"]
    for name, content in pickles:
        if "/weights/" in name or "/constants/" in name:
            continue  # raw numbers may begin with any byte
        assert not {op.name for op, _, _ in pickletools.genops(content)} & CODE, name
    for name, content in found:
        if name.endswith(("weights_config.json", "constants_config.json")):
            assert b'"use_pickle": true' not in content
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    assert mlflow.pytorch.load_model(uri)(torch.rand(3, 3, 16, 16)).shape == (3, 3)
    assert mlflow.pyfunc.load_model(uri).predict(np.zeros((3, 3, 16, 16), "float32")).shape == (
        3,
        3,
    )


def test_the_champion_serves(place):
    promote(place)
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@champion"]
    words += ["--env-manager", "local", "-p", port, "-h", "127.0.0.1"]
    bytes_NCHW = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        wanted = tiny_model()(bytes_NCHW.float() / 255).tolist()

    def ask(content):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["predictions"]

    with running(words, port, place / "served.log", 120, cwd=place):
        time.sleep(1)
        of_bytes = ask({"inputs": bytes_NCHW.tolist(), "params": {"white": 255}})
        of_floats = ask({"inputs": (bytes_NCHW.float() / 255).tolist()})
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask({"inputs": bytes_NCHW.tolist()})
    np.testing.assert_allclose(of_bytes, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_floats, wanted, rtol=1e-4, atol=1e-5)
    assert "pixels must lie in" in refused.value.read().decode()
