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
# A digest, a tag as the Makefile writes it, or one that ends in a whole git hash: Kubeflow caches
# on the name, so what it stands for must not change. A date or a few digits are no revision.
OF_MAKE = rf"\d[\w.]*-(cpu|cuda)-[0-9a-f]{{12,40}}({DIRTY})?"
PINNED = re.compile(rf".+(@sha256:[0-9a-f]{{64}}|:({OF_MAKE}|([\w.-]*-)?[0-9a-f]{{40}}))")


def image_of(cluster: Cluster) -> str:
    """cluster.image, else NGF_IMAGE, else what `make image` calls this checkout's.

    Raises:
        InputError: what it stands for may change; or nothing says which, and there is no git.
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
            "digest, which `make image-push` prints, a tag as `make image` writes it, or one that "
            "ends in a whole git hash"
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
