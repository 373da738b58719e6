"""A measurement in a child process of its own.

Forked from a parent that has imported torch and computed nothing, so that no run finds what an
earlier one left behind, and none pays for imports.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Found = TypeVar("Found")


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
