"""Who runs this, and which code."""

import getpass
import os
import subprocess


def git_revision() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:  # an image needs no git
        return None
    return done.stdout.strip() or None


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a cluster may run a pod as a number without a name
        return str(os.getuid())
