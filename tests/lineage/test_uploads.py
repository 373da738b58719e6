"""A store of artifacts that answers later than a request may take, but not than an upload may."""

import contextlib
import os
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import GATE, promotable

from ngf import lineage, stages
from ngf.lineage import _client, registry

pytestmark = pytest.mark.slow

REQUEST_S, LATE_S = 1, 2
LATE = ("model.pt2", "decision.json", "weights.safetensors")


class Store(BaseHTTPRequestHandler):
    """Takes files by PUT and forgets them; the answer to some comes late."""

    arrived: list[str]

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith(LATE):
            time.sleep(LATE_S)
        self.arrived.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        with contextlib.suppress(BrokenPipeError):  # who asked has given up
            self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def late(tmp_path, monkeypatch, empty_database):
    """The list of what arrived; runs of the experiment keep their artifacts in such a store."""
    from mlflow import MlflowClient

    handler = type("Late", (Store,), {"arrived": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    file = tmp_path / "mlflow.db"
    shutil.copy(empty_database, file)
    settings = {
        "NGF_LINEAGE": "on",
        "NGF_REGISTRY_PATIENCE": "0",
        "MLFLOW_TRACKING_URI": f"sqlite:///{file}",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_S),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    location = f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts"
    MlflowClient(f"sqlite:///{file}").create_experiment("ngf", artifact_location=location)
    yield handler.arrived
    server.shutdown()


def test_a_promotion_waits_for_its_files_and_the_recorder_for_what_is_attached(
    late, tmp_path, capfd
):
    promotable(tmp_path)
    paths = {name: tmp_path / name for name in ("model", "evaluation")}
    stages.run("promote", settings={"gate": GATE}, out=tmp_path / "decision.json", **paths)
    assert [path for path in late if path.endswith("/data/model.pt2")]
    assert [path for path in late if path.endswith("/decision.json")]
    assert "warning" not in capfd.readouterr().err


def test_files_of_strangers_are_waited_for_too(late, tmp_path):
    promotable(tmp_path)
    with lineage.recording("purify", {}, {}):
        number = registry.register_files(tmp_path / "model", name="m", tags={}, description="")
    assert number == 1
    assert [path for path in late if path.endswith("/weights.safetensors")]


def test_only_uploads_may_take_so_long(late):
    def allowed():
        return int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])

    with _client.uploading():
        assert allowed() == lineage.UPLOAD_S
    assert allowed() == REQUEST_S


def test_who_allows_more_is_not_given_less(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "900")
    with _client.uploading():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "900"
