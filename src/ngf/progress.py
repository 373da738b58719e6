"""A progress bar for people: on a terminal, on standard error, once two seconds have passed."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 2.0


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield `items` and show how far they are, where somebody is looking."""
    if not sys.stderr.isatty():
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:  # the core runs without the command line's packages
        yield from items
        return
    started = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(what, total=total, visible=False)
        for item in items:
            yield item
            late = time.monotonic() - started > PATIENCE_S
            bars.update(bar, advance=1, visible=late)


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Show that something without countable steps is going on, where somebody is looking."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
