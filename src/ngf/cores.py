"""How many processor cores the work is divided among."""

import os

from ngf.errors import InputError

VARIABLE = "NGF_CPUS"


def cores() -> int:
    """NGF_CPUS, else those that this process may run on.

    A pod may run on all cores of its node, however few it asks for: it is told by the variable.

    Raises:
        InputError: NGF_CPUS is not a whole number from 1 on.
    """
    told = os.environ.get(VARIABLE)
    if told is not None:
        if not told.isdecimal() or int(told) < 1:
            raise InputError(f"{VARIABLE} must be a whole number from 1 on, got {told!r}")
        return int(told)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
