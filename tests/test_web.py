"""One GET: what is no answer, and that no secret is shown."""

import http.server
import threading

import pytest

from pipelines.web import get


def test_a_secret_with_a_line_break_is_not_shown():
    with pytest.raises(ValueError, match="the value for Authorization holds a line break") as told:
        get("http://localhost:9", 1, {"Authorization": "Bearer secret\n"})
    assert "secret" not in str(told.value)


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
