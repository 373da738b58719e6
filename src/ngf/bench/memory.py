"""The most memory that a process held."""

from __future__ import annotations

from pathlib import Path


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
