"""`dvc repro`, several stages at a time.

DVC runs one stage after the other. It lets go of the repository while a stage's command runs, and
guards what each reads and writes by locks of its own, so that several `dvc repro --single-item` go
side by side, and beside one that somebody else runs. Here the graph is DVC's, each stage starts
once the stages before it are done, and what is busy is asked for again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ngf import jobs, params, plugins, stages
from ngf.errors import InputError

BUSY = ("unable to acquire lock", "is busy", "locked by", "being blocked")
ROOMS = ("datasets", "attacks", "defenses")  # what a grid names
PATIENCE_S = 3600.0
PAUSE_S = 0.5


def check_grid(file: Path = Path("params.yaml")) -> None:
    """Whether the `grid` of a parameter file, if there is one, can run with the file's numbers.

    DVC would only miss the file of a misspelt attack, name none that is there, and start the rest;
    a misspelt key would end each of its cells, once what they need is trained.

    Raises:
        InputError: no such data set, attack or defense, one to promote that is not active, or a
            section that its stage does not take.
    """
    numbers = params.read(file) if file.exists() else {}
    grid = numbers.get("grid")
    if not isinstance(grid, dict):
        return
    for room in ROOMS:
        for name in grid.get(room) or []:
            plugins.known(room, str(name))
    for name in grid.get("promote") or []:
        params.one_of(grid.get("defenses") or [], **{"grid.promote": name})
    active = {room.removesuffix("s"): grid.get(room) or [] for room in ROOMS}
    stages.check(numbers, active, file)


def graph(targets: Sequence[str]) -> dict[str, set[str]]:
    """{stage: the stages before it} in the working directory's pipeline, or of what targets need.

    In DVC's order of execution, and each stage's shared ancestors before it.

    Raises:
        InputError: no repository of DVC, or no such stage.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            whole = repo.index.graph
            wanted = set(whole)
            if targets:
                chosen = [stage for name in targets for stage in repo.stage.collect(name)]
                wanted = set().union(*({one, *nx.descendants(whole, one)} for one in chosen))
            part = whole.subgraph(wanted)
            order = [stage for stage in nx.dfs_postorder_nodes(part) if stage.cmd]
            return {
                stage.addressing: {
                    before.addressing for before in nx.descendants(part, stage) if before.cmd
                }
                for stage in order
            }
    except DvcException as error:
        raise InputError(" ".join(str(error).split())) from error


def run(targets: Sequence[str], at_once: int, say: Callable[[str], None]) -> dict[str, str]:
    """{stage: "done", "failed" or "skipped"}; what DVC finds unchanged is done at once.

    Raises:
        InputError: as in `check_grid` and `graph`; nothing was started.
    """
    check_grid()
    threads = str(jobs.threads_each(at_once))
    needs = graph(targets)
    here = str(Path(sys.executable).parent)  # `ngf` is there, whoever calls from wherever
    path = os.pathsep.join([here, os.environ.get("PATH", "")])
    environment = {
        **os.environ,
        "PATH": path,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    found = {}
    for stage, outcome in jobs.run(
        _closest_first(needs), lambda stage: _repro(stage, environment), at_once
    ):
        found[stage] = outcome
        say(f"{stage}: {outcome}")
    return found


def _closest_first(needs: dict[str, set[str]]) -> dict[str, set[str]]:
    """Stages that most others wait for come first; else DVC's order."""
    waited = {stage: sum(stage in before for before in needs.values()) for stage in needs}
    return dict(sorted(needs.items(), key=lambda item: -waited[item[0]]))


def _repro(stage: str, environment: dict[str, str]) -> bool:
    """One stage by `dvc repro --single-item`, asked again while something it needs is busy."""
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    until = time.monotonic() + PATIENCE_S
    while True:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        busy = any(words in done.stderr.lower() for words in BUSY)
        if done.returncode == 0 or not busy or time.monotonic() > until:
            break
        time.sleep(PAUSE_S)
    if done.returncode:
        print((done.stdout + done.stderr).strip(), file=sys.stderr)
    return done.returncode == 0
