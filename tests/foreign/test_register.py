"""A stranger's purified model in a real MLflow registry, and back out of it."""

import importlib
import json
import sys

import pytest
import torch
from _place import ALL_THE_SAME, OWN, furnish, purify
from command import in_a_process, ngf
from conftest import CLASSES, colour_split

from ngf import lineage, store
from ngf.errors import InputError
from ngf.foreign import purify as foreign
from ngf.foreign import register
from ngf.lineage import registry
from ngf.models import named

FAST = ("--defense", "none", *ALL_THE_SAME)


@pytest.fixture
def place(tmp_path, monkeypatch):
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tracked(place, monkeypatch, database):
    monkeypatch.setenv("NGF_LINEAGE", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", place.name)
    return place


@pytest.mark.slow
def test_what_is_registered_is_what_came_back_and_can_be_read_again(tracked, database):
    from mlflow import MlflowClient

    torch.manual_seed(0)
    content = {"state_dict": named.build(CLASSES, name="shufflenet_v2_x0_5").state_dict()}
    torch.save(content, "shuffle.pth")
    name = f"their net {tracked.name}"
    done = purify(
        *OWN, *FAST, "--register", name, "--json", model="shuffle.pth", arch="shufflenet_v2_x0_5"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["registered"] == f"{name}/1"

    client, report = MlflowClient(database), store.read_json(tracked / "out" / "report.json")
    version = client.get_model_version(name, "1")
    assert version.tags == {
        "origin": "shuffle.pth",
        "defense": "none",
        "holdout_images": "12",
        "holdout_acc_before": f"{report['holdout_acc_before']:.4f}",
        "holdout_acc_after": f"{report['holdout_acc_after']:.4f}",
        "agreement": "1.0000",
    }
    assert not client.get_registered_model(name).aliases, "nobody judged it"
    client.set_registered_model_alias(name, "chosen", "1")
    for uri in (f"models:/{name}/1", f"models:/{name}@chosen"):
        again = ngf("purify", "--model", uri, "--clean", "images", "--out", "again", *FAST)
        assert again.returncode == 0, again.stderr
        assert "network: shufflenet_v2_x0_5; head: fc" in again.stderr
        found = torch.load("again/shuffle.pth", weights_only=True)["state_dict"]
        assert all(torch.equal(found[key], t) for key, t in content["state_dict"].items())
    lost = ngf("purify", "--model", f"models:/{name}/7", "--clean", "images", "--out", "x")
    assert lost.returncode == 1
    assert lost.stderr.startswith(f"error: MLflow at {database}: ")
    assert "not found" in lost.stderr


@pytest.mark.slow
def test_who_purifies_the_result_again_is_its_child(tracked, database):
    from mlflow import MlflowClient

    name = f"mine {tracked.name}"
    assert purify(*OWN, *FAST, "--register", name).returncode == 0
    second = purify(*OWN, *FAST, "--register", name, model=f"models:/{name}/1", out="again")
    assert second.returncode == 0, second.stderr
    client = MlflowClient(database)
    first, child = (client.get_model_version(name, number).run_id for number in "12")
    assert client.get_model_version(name, "2").tags["origin"] == f"models:/{name}/1"
    run = client.get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == first
    assert run.info.status == "FINISHED"
    assert run.data.metrics["holdout_images"] == 12


@pytest.mark.slow
def test_a_registry_that_is_not_there_is_said_before_the_work(tracked, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("NGF_REGISTRY_PATIENCE", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = purify(*OWN, "--register", "mine", run=in_a_process)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: MLflow at http://127.0.0.1:9: ")
    assert "secret" not in line
    assert not (tracked / "out").exists()


@pytest.mark.slow
def test_nothing_can_be_registered_where_nothing_is_recorded(place):
    done = purify(*OWN, "--register", "mine")
    assert done.returncode == 1
    assert "nothing is recorded here (NGF_LINEAGE=off)" in done.stderr


@pytest.mark.slow
def test_a_registry_that_is_lost_on_the_way_does_not_take_the_result_with_it(tracked, monkeypatch):
    def lost(*_, **__):
        raise lineage.LineageError("the server is gone")

    monkeypatch.setattr(registry, "register_files", lost)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    importlib.invalidate_caches()
    given = foreign.Given(
        model="net.pt",
        clean=tracked / "images",
        arch="theirs:net",
        mean=[0.3] * 3,
        std=[0.2] * 3,
    )
    protocol = {"snapshots": 0, "holdout": 0.2, "max_acc_drop": 1, "on_drop": "warn", "seed": 0}
    with pytest.raises(lineage.LineageError, match=r"the server is gone; .* is not lost: .*/out"):
        register.purify(
            given,
            name="mine",
            defense="none",
            options={},
            protocol=protocol,
            out=tracked / "out",
            report=None,
            say=lambda _: None,
        )
    assert {file.name for file in (tracked / "out").iterdir()} == {
        "net.pt",
        "card.json",
        "report.json",
    }


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "me@here", "o'clock"])
def test_a_name_that_no_model_can_have_is_said(name):
    with pytest.raises(InputError, match=r"--register .*: a registered model's name"):
        registry.check_name(name)


def test_a_model_of_this_project_is_promoted(place, model):
    store.save_model(place / "victim", model)
    store.save_split(place / "split", colour_split(60, seed=3))
    words = ("--model", "victim", "--clean", "split", "--out", "out")
    done = ngf("purify", *words, "--register", "mine")
    assert done.returncode == 2
    assert "error: --register mine has no place here: " in done.stderr
    assert "`ngf promote`" in done.stderr
    assert not (place / "out").exists()
