"""A real MLflow server that is cut off in the middle of a promotion, or of a stage's record."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, promotable
from servers import Cable, mlflow_server
from test_team_server import PROMOTE

from ngf import store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outage")
    where = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db"]
    where += [f"--artifacts-destination={folder}/artifacts"]
    with mlflow_server(folder / "mlflow", *where) as tracking:
        yield tracking


RECORD = """
from ngf import lineage, stages
with lineage.recording("poison", {"options": {"seed": 0}}, {}) as record:
    record.done(stages.Outcome("done", {"images": 1.0}), {})
"""


def promote(folder, tracking, patience_s):
    return run([PROMOTE, folder, folder / "decision.json"], tracking, patience_s)


def run(words, tracking, patience_s, **more):
    environment = {
        **os.environ,
        "NGF_LINEAGE": "on",
        "NGF_REGISTRY_PATIENCE": str(patience_s),
        "MLFLOW_TRACKING_URI": tracking,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
        **more,
    }
    command = [sys.executable, "-c", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def left(server, name):
    """Versions of the name, aliases, and logged models of its promotions that no version has."""
    import mlflow

    client = mlflow.MlflowClient(server, server)
    attack = name.rpartition("-")[2]
    versions = client.search_model_versions(f"name = '{name}'")
    experiment = client.get_experiment_by_name("ngf")
    runs = {
        run.info.run_id
        for run in client.search_runs([experiment.experiment_id])
        if run.data.tags.get("attack") in (None, attack)  # None: cut off before it was noted
    }
    logged = client.search_logged_models([experiment.experiment_id])
    ours = {one.model_id for one in logged if one.source_run_id in runs}
    mine = {version.model_id for version in client.search_model_versions()}
    aliases = client.get_registered_model(name).aliases if versions else {}
    return versions, aliases, ours - mine


@pytest.mark.parametrize("request_number", [12, 18, 24])
def test_a_server_lost_and_back_is_asked_again(request_number, server, tmp_path):
    attack = f"cut{request_number}"
    promotable(tmp_path, attack=attack)
    with Cable(server, cut_at=request_number, seconds=2) as cable:
        done = promote(tmp_path, cable.address, 60)
    assert cable.cuts == 1, "the promotion ended before the server was lost"
    assert done.returncode == 0, done.stderr
    versions, aliases, orphans = left(server, f"ngf-colours-{attack}")
    assert [version.version for version in versions] == ["1"]
    assert aliases == {"champion": "1"}
    assert not orphans
    assert store.read_json(tmp_path / "decision.json")["decision"] == "champion"


@pytest.mark.parametrize("request_number", range(1, 7))
def test_a_server_lost_while_a_record_is_opened_costs_no_record(request_number, server):
    """Nor is there a second one, where the answer to the first was lost."""
    import mlflow

    name = f"record{request_number}"
    with Cable(server, cut_at=request_number, seconds=2) as cable:
        done = run([RECORD], cable.address, 60, MLFLOW_EXPERIMENT_NAME=name)
    assert cable.cuts == 1, "the record was whole before the server was lost"
    assert (done.returncode, done.stderr) == (0, "")
    client = mlflow.MlflowClient(server, server)
    (found,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"options.seed": "0"}
    assert found.data.metrics["images"] == 1


def test_a_server_lost_for_good_is_an_error_and_the_next_promotion_mends_it(server, tmp_path):
    promotable(tmp_path, attack="gone")
    with Cable(server, cut_at=15, seconds=1e9) as cable:
        done = promote(tmp_path, cable.address, 2)
    assert cable.cuts == 1
    assert done.returncode != 0
    assert not (tmp_path / "decision.json").exists()
    versions, _, _ = left(server, "ngf-colours-gone")
    assert len(versions) <= 1
    assert promote(tmp_path, server, 2).returncode == 0
    versions, aliases, _ = left(server, "ngf-colours-gone")
    assert len(versions) == 1
    assert aliases == {"champion": versions[0].version}
