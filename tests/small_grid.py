"""A copy of this checkout with a grid that runs in half a minute."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import ROOT

BIN = Path(sys.executable).parent
CELL = Path("runs/signs/badnets")


def run(*words, cwd: Path, check: bool = True, **environment) -> subprocess.CompletedProcess:
    env = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": f"{cwd}/src:{cwd}",
        "NGF_LINEAGE": "on",
        "DVC_NO_ANALYTICS": "1",
        "COLUMNS": "200",
        **environment,
    }
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def edit(file: Path, change) -> None:
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def shrink(content) -> None:
    content["grid"] |= {"attacks": ["badnets"], "defenses": ["none", "ngf"]}
    content["datasets"]["signs"] |= {"train_images": 640, "test_images": 64}
    content["prepare"]["clean_fraction"] = 0.1
    content["train"]["signs"] |= {"epochs": 2, "model": {**NARROW}}
    content["defenses"]["ngf"] |= {"steps": 3, "views": 2}
    content["inspect"] |= {"images": 20, "probes": 2, "lanczos": 3, "surface": 3, "features": 24}
    content["inspect"]["surface_images"] = 10
    content["cluster"]["retries"]["count"] = 0


NARROW = {"depth": 18, "width": 4, "stem_stride": 2}


def checkout(folder: Path) -> None:
    """A repository with this checkout's files, and nothing run."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    run("git", "init", "-q", cwd=folder)
