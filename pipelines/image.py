"""Which image the tasks run in, and at which git revision a run is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import ngf
from ngf.errors import InputError
from pipelines.cluster import Cluster

ROOT = Path(__file__).parents[1]
DIRTY = "-dirty"
# A digest, or a tag that ends in a git revision: Kubeflow caches on the name, so what the name
# stands for must not change.
PINNED = re.compile(r".+(@sha256:[0-9a-f]{64}|:[\w.-]*[0-9a-f]{7,40}(-dirty)?)")


def image_of(cluster: Cluster) -> str:
    """cluster.image, else NGF_IMAGE, else what `make image` calls this checkout's.

    Raises:
        InputError: neither digest nor revision in it; or nothing says which, and there is no git.
    """
    given = cluster.image or os.environ.get("NGF_IMAGE")
    if given is None:
        target = "cuda" if cluster.accelerator else "cpu"
        return (
            f"localhost/ngf-python:{ngf.__version__}-{target}-{revision('the image', short=True)}"
        )
    if not PINNED.fullmatch(given):
        raise InputError(
            f"image '{given}' may change under its name, and Kubeflow caches on the name: give a "
            "digest, which `make image-push` prints, or a tag that ends in a git revision"
        )
    return given


def revision(what: str, *, short: bool = False) -> str:
    """The commit that is checked out, `-dirty` where a tracked file differs from it.

    Raises:
        InputError: no git, or no commit. what: needs it, for the message.
    """
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    words.append(f"--abbrev={12 if short else 40}")
    try:
        said = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        said = None
    if said is None or said.returncode:
        raise InputError(f"{what} needs a git revision and {ROOT} has none: set NGF_IMAGE")
    return said.stdout.strip()
