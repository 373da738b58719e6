"""Who runs this, and which code.

In a container neither git nor the user database knows: the image says NGF_REVISION, and who starts
the container NGF_USER.
"""

import getpass
import os
import subprocess


def git_revision() -> str | None:
    if given := os.environ.get("NGF_REVISION"):
        return given
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:  # an image needs no git
        return None
    return done.stdout.strip() or None


def user() -> str:
    if given := os.environ.get("NGF_USER"):
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a cluster may run a pod as a number without a name
        return str(os.getuid())
