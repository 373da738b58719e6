"""Lineage by content, in MLflow: only this room knows it.

Each stage run is one MLflow run. It logs its settings and metrics, and the digests of what it read
and wrote as dataset inputs. Its parent is the run that wrote what it reads, found by digest: no run
id travels inside an artifact, so the bytes of artifacts stay the same and caches hold.

MLflow takes more than a second to import and can hang on a dead server, so a process of its own
(`recorder.py`) writes the record beside the stage's work. A stage never fails because of it: what
could not be recorded is said on standard error. When the stage's process is killed, the recorder
sees its pipe close and marks the run as killed; after a SIGTERM the stage waits a moment for that.

Environment: MLFLOW_TRACKING_URI (default sqlite:///mlflow.db in the working directory),
MLFLOW_EXPERIMENT_NAME (default ngf) and MLFLOW_RUN_ID (a run that somebody else opened and will
close) are respected; NGF_REVISION and NGF_USER say which code runs and for whom where git and the
system do not know it (`_who.py`); NGF_LINEAGE=off records nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngf import store
from ngf.lineage._sigterm import Terminated, sigterm_raises

if TYPE_CHECKING:
    from ngf.params import Settings
    from ngf.stages import Outcome

PATIENCE_S = 90.0  # a fresh SQLite database needs ten seconds for its tables
UPLOAD_S = 300  # a server passes files on to a store of its own before it answers
FAREWELL_S = 3.0  # of the seconds that a pod is given to end
DEFAULT_URI = "sqlite:///mlflow.db"
_current: Record | None = None


class LineageError(RuntimeError):
    """MLflow could not do what a stage exists for."""


class Record:
    """A stage run that a process beside this one writes to MLflow."""

    def __init__(self, stage: str, settings: Mapping[str, Settings]) -> None:
        self._stage = stage
        self._opening: dict[str, Any] = {"stage": stage, "settings": settings, "time_ms": now_ms()}
        self._closing: dict[str, Any] = {"status": "FAILED"}
        self._started = time.perf_counter()
        self._opened: dict[str, Any] | None = None
        self._sent = False
        self._recorder = subprocess.Popen(
            [sys.executable, "-m", "ngf.lineage.recorder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C must not reach it: it has a run to close
        )

    def open(self, reads: Mapping[str, Path]) -> None:
        """Send what the stage is about to do; the digests are taken while MLflow is imported."""
        from ngf.stages import Reads, marks

        marked = marks(self._stage) if reads else {}
        self._opening["reads"] = {
            key: {
                "path": str(path),
                "digest": store.digest(path),
                "parent": isinstance(mark := marked[key], Reads) and mark.parent,
            }
            for key, path in reads.items()
        }
        self._say(self._opening)
        self._sent = True

    def run_id(self) -> str:
        """The MLflow run; waits until it is open. `LineageError` where it cannot be."""
        if self._opened is None:
            self._opened = self._hear(PATIENCE_S)
        if "error" in self._opened:
            raise LineageError(self._opened["error"])
        return str(self._opened["run_id"])

    def done(self, outcome: Outcome, writes: Mapping[str, Path]) -> None:
        """Note what the stage did; sent when the recording ends."""
        from ngf.stages import Writes, marks

        marked = marks(self._stage)
        attached = {
            key for key in writes if isinstance(mark := marked[key], Writes) and mark.attach
        }
        self._finish(outcome, writes, attached)

    def kept(self, outcome: Outcome, files: Mapping[str, Path]) -> None:
        """The same for files that no stage wrote; all travel with the run."""
        self._finish(outcome, files, files)

    def _finish(
        self, outcome: Outcome, writes: Mapping[str, Path], attached: Collection[str]
    ) -> None:
        self._closing = {
            "status": "FINISHED",
            "message": outcome.message,
            "metrics": {**outcome.metrics, "stage_seconds": time.perf_counter() - self._started},
            "tags": outcome.tags,
            "wrote": {
                key: {"path": str(path), "digest": store.digest(path), "attach": key in attached}
                for key, path in writes.items()
            },
        }

    def fail(self, error: Exception) -> None:
        self._closing = {"status": "FAILED", "message": f"{type(error).__name__}: {error}"}

    def close(self) -> None:
        """Send the end and wait until it is written; say so on standard error where it is not."""
        try:
            if not self._sent:  # the stage failed before there was anything to record
                return
            if self._opened and "error" in self._opened:  # who asked for the run has been told
                return
            self.run_id()
            self._say({**self._closing, "time_ms": now_ms()})
            uploads = any(wrote["attach"] for wrote in self._closing.get("wrote", {}).values())
            answer = self._hear(PATIENCE_S + UPLOAD_S * uploads)
            if "error" in answer:
                raise LineageError(answer["error"])
        except LineageError as error:
            print(f"warning: this run is not in MLflow ({address()}): {error}", file=sys.stderr)
        finally:
            self._recorder.kill()
            self._recorder.communicate()

    def leave(self) -> None:
        """Let the recorder mark the run as killed, and wait a moment for it.

        A process that is the first of its container takes the recorder with it when it ends; else
        the recorder finishes by itself, however long it takes.
        """
        assert self._recorder.stdin is not None
        self._recorder.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._recorder.wait(FAREWELL_S)

    def _say(self, message: dict[str, Any]) -> None:
        assert self._recorder.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a dead recorder is found when it is heard
            self._recorder.stdin.write(json.dumps(message, default=str) + "\n")
            self._recorder.stdin.flush()

    def _hear(self, seconds: float) -> dict[str, Any]:
        assert self._recorder.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._recorder.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return {"error": f"no answer within {seconds:g} s"}
        line = self._recorder.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the recorder died"}
        return answer


@contextlib.contextmanager
def recording(
    stage: str, settings: Mapping[str, Settings], reads: Mapping[str, Path]
) -> Iterator[Record | None]:
    """Record what happens inside the block as one MLflow run; None where recording is off."""
    global _current
    if os.environ.get("NGF_LINEAGE") == "off":
        yield None
        return
    record = _current = Record(stage, settings)
    end = record.close
    try:
        with sigterm_raises():
            record.open(reads)
            yield record
    except (Terminated, KeyboardInterrupt):
        end = record.leave
        raise
    except Exception as error:
        record.fail(error)
        raise
    finally:
        _current = None
        end()


def current_run_id() -> str:
    """The MLflow run of the stage that is running; `LineageError` where there is none."""
    if _current is None:
        raise LineageError("nothing is recorded here (NGF_LINEAGE=off)")
    return _current.run_id()


def address() -> str:
    """Where MLflow is looked for."""
    return without_passwords(tracking_uri())


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI)


def without_passwords(text: str) -> str:
    """Addresses in the text may hold a user's name and password before the host."""
    return re.sub("//[^/@ ]*@", "//", text)


def now_ms() -> int:
    """The time as MLflow counts it."""
    return time.time_ns() // 1_000_000
