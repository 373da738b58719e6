"""The pipeline on this machine: what it may delete, and one GET."""

import http.server
import threading

import pytest

from ngf.errors import InputError
from pipelines.local import _emptied, run_pair
from pipelines.login import Login
from pipelines.web import get

NUMBERS = {"datasets": {"signs": {}}, "attacks": {"badnets": {}}}


@pytest.mark.parametrize(("dataset", "attack"), [("nosuch", "badnets"), ("signs", "nosuch")])
def test_an_unknown_name_deletes_nothing(tmp_path, dataset, attack):
    (tmp_path / "precious").touch()
    with pytest.raises(InputError, match="'nosuch': there is"):
        run_pair(dataset, attack, NUMBERS, tmp_path)
    assert (tmp_path / "precious").exists()


def test_a_folder_of_something_else_stays(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(InputError, match="holds something else"):
        _emptied(tmp_path)
    assert (tmp_path / "precious").exists()


def test_an_earlier_runs_folder_is_deleted(tmp_path):
    root = tmp_path / "new"
    _emptied(root)
    (root / "old").touch()
    _emptied(root)
    assert not (root / "old").exists()


def test_a_secret_with_a_line_break_is_not_shown():
    with pytest.raises(ValueError, match="the value for Authorization holds a line break") as told:
        get("http://localhost:9", 1, {"Authorization": "Bearer secret\n"})
    assert "secret" not in str(told.value)


def test_the_environments_token_is_taken_without_its_line_break(monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", "abc\n")
    assert Login.of_environment().headers()["Authorization"] == "Bearer abc"


def test_a_mistyped_port_is_an_address_that_is_not_http():
    with pytest.raises(ValueError, match="no answer of http: nonnumeric port: '80x'"):
        get("http://localhost:80x", 1, {})


def test_an_answer_that_is_not_http_is_told():
    class Mute(http.server.BaseHTTPRequestHandler):
        def handle(self):
            self.wfile.write(b"SSH-2.0\r\n")

    with http.server.HTTPServer(("localhost", 0), Mute) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(ValueError, match="no answer of http"):
            get(f"http://localhost:{server.server_port}", 5, {})
