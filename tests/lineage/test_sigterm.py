"""A process that is told to end: it closes what is open, and ends soon whatever MLflow does."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from ngf import lineage
from ngf.lineage._sigterm import Terminated, sigterm_raises


def test_sigterm_raises_and_what_was_open_is_closed():
    before = signal.getsignal(signal.SIGTERM)
    closed = []

    def work():
        with sigterm_raises():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                closed.append(signal.getsignal(signal.SIGTERM))

    with pytest.raises(Terminated) as ended:
        work()
    assert ended.value.code == 143
    assert closed == [before], "a second one must end the process at once"
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_a_signal_nothing_is_left_changed():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_raises():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


FORKED = """
import os, signal, sys
from ngf.lineage._sigterm import sigterm_raises
with sigterm_raises():
    child = os.fork()
    if not child:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            print("closed what is the parent's", flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_closes_nothing_of_its_parent():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert done.stdout == "-15\n"


STAGE = """
import time
from ngf import lineage
with lineage.recording("poison", {}, {}):
    print("open", flush=True)
    time.sleep(60)
"""


def test_a_server_that_does_not_answer_delays_the_end_by_seconds():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            **os.environ,
            "NGF_LINEAGE": "on",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }
        words = [sys.executable, "-c", STAGE]
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"open\n"
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            assert process.wait(30) == 143
            assert time.monotonic() - started < lineage.FAREWELL_S + 2
