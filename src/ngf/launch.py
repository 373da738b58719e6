"""Which of several processes this is, by the variables that torchrun sets; without torch."""

import os


def rank() -> int:
    """Which of the processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Which of this machine's processes this is: the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))
