"""A team's MLflow: PostgreSQL behind it, artifacts in an S3 store, many writers at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, promotable
from servers import S3_KEYS, mlflow_server, postgres, postgres_tools, s3_store

from ngf import store

pytestmark = pytest.mark.slow
WRITERS = 10
NAME = "ngf-colours-badnets"
PROMOTE = """
import sys
from pathlib import Path
from ngf import stages
folder, out = map(Path, sys.argv[1:])
gate = {"max_asr_above_floor": 0.03, "max_acc_drop": 0.03}
outcome = stages.run("promote", settings={"gate": gate}, model=folder / "model",
                     evaluation=folder / "evaluation", out=out)
print(outcome.message)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if postgres_tools() is None:
        pytest.skip("PostgreSQL's initdb is not installed (Debian: postgresql)")
    folder = tmp_path_factory.mktemp("team")
    with postgres(folder / "postgres") as database, s3_store(folder / "s3", "mlflow") as address:
        environment = {**S3_KEYS, "MLFLOW_S3_ENDPOINT_URL": address}
        where = [f"--backend-store-uri={database}", "--artifacts-destination=s3://mlflow"]
        with mlflow_server(folder / "mlflow", *where, **environment) as tracking:
            yield tracking


def at_once(server, words):
    environment = {
        **os.environ,
        "NGF_LINEAGE": "on",
        "MLFLOW_TRACKING_URI": server,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", *each],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for each in words
    ]
    said = [writer.communicate(timeout=500)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * len(writers), "\n".join(said)


def test_of_ten_at_once_nothing_is_lost_and_the_best_is_champion(server, tmp_path):
    lost = [0.010, 0.004, 0.018, 0.002, 0.014, 0.012, 0.008, 0.016, 0.006, 0.020]
    folders = [tmp_path / str(number) for number in range(WRITERS)]
    for folder, share in zip(folders, lost, strict=True):
        folder.mkdir()
        promotable(folder, lost=share)
    at_once(server, [[PROMOTE, one, one / "decision.json"] for one in folders])
    decisions = [json.loads((folder / "decision.json").read_text()) for folder in folders]
    assert sorted(one["version"] for one in decisions) == list(range(1, WRITERS + 1))
    assert all(one["passed"] for one in decisions)

    import mlflow

    client = mlflow.MlflowClient(server, server)
    experiment = client.get_experiment_by_name("ngf")
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    versions = client.search_model_versions(f"name = '{NAME}'")
    assert len(versions) == WRITERS
    runs = [client.get_run(version.run_id) for version in versions]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(run.data.metrics["passed"] == 1 for run in runs)
    assert {version.tags["ngf.gate"] for version in versions} == {"passed"}
    champion = client.get_registered_model(NAME).aliases["champion"]
    best = client.get_model_version(NAME, champion)
    assert float(best.tags["ngf.acc_drop"]) == min(lost)
    assert [version.tags["ngf.decision"] for version in versions].count("champion") == 1
    # The attached decision went through the server into the store, and comes back.
    for run in runs:
        (file,) = (one.path for one in client.list_artifacts(run.info.run_id) if not one.is_dir)
        content = client.download_artifacts(run.info.run_id, file, str(tmp_path))
        assert store.read_json(Path(content))["model"] == NAME


def test_one_promotion_ten_times_at_once_is_one_version(server, tmp_path):
    promotable(tmp_path, attack="twins")
    at_once(server, [[PROMOTE, tmp_path, tmp_path / f"{n}.json"] for n in range(WRITERS)])

    import mlflow

    client = mlflow.MlflowClient(server, server)
    (version,) = client.search_model_versions("name = 'ngf-colours-twins'")
    aliases = client.get_registered_model("ngf-colours-twins").aliases
    assert aliases == {"champion": version.version}
