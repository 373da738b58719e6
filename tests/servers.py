"""Real servers on loopback for tests: PostgreSQL, an S3 store, MLflow."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

S3_KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "word",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def running(words: list, port: int, log: Path, patience_s: float = 60, **options) -> Iterator[None]:
    """The process, from when it listens on the port until the end of the block."""
    with log.open("wb") as said:
        process = subprocess.Popen([*map(str, words)], stdout=said, stderr=said, **options)
    try:
        deadline = time.monotonic() + patience_s
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()
        process.wait()


def postgres_tools() -> Path | None:
    """Where PostgreSQL's programs lie; Debian keeps them out of PATH."""
    found = shutil.which("initdb") or max(glob.glob("/usr/lib/postgresql/*/bin/initdb"), default="")
    return Path(found).resolve().parent if found else None


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The address of an empty database. It does not run as root, so root lends it a user."""
    tools, port = postgres_tools(), free_port()
    assert tools is not None
    data = folder / "data"
    data.mkdir(parents=True)
    options = {}
    if os.getuid() == 0:
        options = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(data, "nobody", "nogroup")
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    words = ["--username=mlflow", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
    subprocess.run(
        [tools / "initdb", "-D", data, *words], check=True, capture_output=True, cwd="/", **options
    )
    words = [tools / "postgres", "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1"]
    words += ["-c", "unix_socket_directories=", "-c", "fsync=off"]
    with running(words, port, folder / "log", cwd="/", **options):
        deadline = time.monotonic() + 30
        ready = [tools / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, capture_output=True).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def s3_store(folder: Path, bucket: str) -> Iterator[str]:
    """The address of an S3 store with an empty bucket."""
    import boto3

    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    server = Path(sys.executable).with_name("moto_server")
    address = f"http://127.0.0.1:{port}"
    with running([server, "-H", "127.0.0.1", "-p", port], port, folder / "log"):
        boto3.client(
            "s3",
            endpoint_url=address,
            aws_access_key_id=S3_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=S3_KEYS["AWS_DEFAULT_REGION"],
        ).create_bucket(Bucket=bucket)
        yield address


@contextlib.contextmanager
def mlflow_server(folder: Path, *words: str, **environment: str) -> Iterator[str]:
    """The address of a server, healthy. words: where it keeps what."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    env = {**os.environ, **quiet, **environment}
    env.pop("MLFLOW_TRACKING_URI", None)
    log = folder / "log"
    with running([*command, "--workers", "2", *words], port, log, 120, env=env, cwd=folder):
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5).read()
                break
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield address


METHODS = (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE")


class Cable:
    """Forwards TCP to a server; cut while the answer to one request is on its way, then mended.

    cut_at: the request (counted over all connections) whose answer is lost. seconds: how long
    nothing gets through afterwards. cuts: how often that happened, 0 or 1.
    """

    def __init__(self, address: str, *, cut_at: int, seconds: float) -> None:
        self._to = ("127.0.0.1", int(address.rsplit(":", 1)[1]))
        self._cut_at, self._seconds = cut_at, seconds
        self._seen, self.cuts, self._dead_until = 0, 0, 0.0
        self._lock, self._open = threading.Lock(), set()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._door.getsockname()[1]}"

    def __enter__(self) -> Cable:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._door.close()
        self._close_all()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            if time.monotonic() < self._dead_until:
                near.close()
                continue
            far = socket.create_connection(self._to)
            with self._lock:
                self._open |= {near, far}
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not asks and self._seen == self._cut_at and not self.cuts:
                    continue  # the answer that is lost
                last = asks and data.split(b" ", 1)[0] in METHODS and self._count()
                sink.sendall(data)
                if last:
                    self._cut()
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _count(self) -> bool:
        with self._lock:
            self._seen += 1
            return self._seen == self._cut_at

    def _cut(self) -> None:
        time.sleep(0.5)  # the server does what it was asked
        self.cuts += 1
        self._dead_until = time.monotonic() + self._seconds
        self._close_all()

    def _close_all(self) -> None:
        with self._lock:
            gone, self._open = self._open, set()
        for one in gone:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
