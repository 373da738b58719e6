"""SIGTERM as an exception: who is told to end, as in a pod that is deleted, closes what is open."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Terminated(SystemExit):
    """The process was told to end; its exit code is that of one that SIGTERM killed."""


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside, the first SIGTERM raises `Terminated`; another one does what it did before.

    A forked child has nothing to close and ends as before. Python lets only a process's main thread
    decide about signals; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def end(number: int, _: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        if os.getpid() == owner:
            raise Terminated(128 + number)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
