"""A measurement in a child process of its own, and the most memory that it held.

Forked from a parent that has imported torch and computed nothing, so that no run finds what an
earlier one left behind, and none pays for imports.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Found = TypeVar("Found")


def peak_resident(*, anew: bool = False) -> int:
    """Bytes: the largest resident set of this process so far.

    The kernel keeps it, so nothing that was there for a moment is missed.

    Args:
        anew: forget what was there before, so that the next call's difference to this one is what
            the code between them took. Linux can; elsewhere the peak since the fork stays.
    """
    import resource
    import sys

    forget = Path("/proc/self/clear_refs")
    if anew and forget.exists():
        forget.write_text("5")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forked(measure: Callable[..., Found], *arguments: Any) -> Found:
    """`measure(*arguments)` in a child process; its `InputError` arrives here."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, measure, *arguments))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = RuntimeError("the run's process died; its own output says why")
    process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _child(sender: Connection, measure: Callable[..., Any], *arguments: Any) -> None:
    from ngf.errors import InputError

    try:
        sender.send(measure(*arguments))
    except InputError as error:
        sender.send(error)
