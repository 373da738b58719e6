"""What `ngf submit` says and asks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ngf import params
from pipelines import preflight
from pipelines.cluster import Cluster
from pipelines.login import KubeflowError
from pipelines.patience import told
from pipelines.submit import (
    DONE,
    Board,
    Package,
    failures,
    packages,
    pod_log,
    submit,
)


def compiled(
    numbers: params.Settings, dataset: str | None, attack: str | None, out: Path
) -> list[Package]:
    """Compile, and print what was compiled."""
    found = packages(numbers, dataset, attack, out)
    for package in found:
        print(f"{package.name}  {package.path}")
    return found


def ready(numbers: params.Settings, endpoint: str, context: str | None) -> bool:
    """Whether preflight finds no blocker; prints what is not well."""
    found = preflight.preflight(Cluster.of(numbers["cluster"]), context=context, kfp=endpoint)
    bad = [finding for finding in found if finding.state != preflight.OK]
    for finding in bad:
        print(finding)
    return all(finding.state != preflight.FAIL for finding in bad)


@contextlib.contextmanager
def kubeflow_in_one_line() -> Iterator[None]:
    """What Kubeflow refuses or does not answer: a line on standard error, and exit code 1."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except KubeflowError as error:
        line = str(error)
    except (ApiException, HTTPError) as error:
        line = f"Kubeflow: {told(error)}"
    else:
        return
    print(f"error: {line}", file=sys.stderr)
    sys.exit(1)


@kubeflow_in_one_line()
def cancel(numbers: params.Settings, endpoint: str, name: str) -> None:
    for line in Board(endpoint, Cluster.of(numbers["cluster"])).cancel(name):
        print(line)


@kubeflow_in_one_line()
def submitted(
    numbers: params.Settings,
    endpoint: str,
    wanted: Sequence[Package],
    *,
    at_once: int | None,
    wait: bool,
    pause: float,
    every: str | None,
    context: str | None,
) -> bool:
    """Submit and report; whether nothing failed as far as is known."""
    cluster = Cluster.of(numbers["cluster"])
    board = Board(endpoint, cluster)
    if every is not None:
        for package in wanted:
            print(board.repeat(package, every))
        return True
    table = Table()
    with table:
        states = submit(board, wanted, at_once=at_once, wait=wait, pause=pause, show=table.show)
    failed = [name for name, state in states.items() if state in ("FAILED", "CANCELED")]
    for line in failures(board, failed, pod_log(context, cluster.namespace)):
        print(line)
    return not failed


class Table:
    """A live table in a terminal; elsewhere a line for each change."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console()
        self.live = Live(console=self.console) if self.console.is_terminal else None
        self.before: dict[str, str] = {}

    def __enter__(self) -> None:
        if self.live:
            self.live.start()

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, states: Mapping[str, str]) -> None:
        from rich.table import Table as Grid

        said = {name: state or "waiting" for name, state in states.items()}
        if self.live:
            grid = Grid("run", "state", box=None)
            for name, state in said.items():
                colour = {DONE: "green", "FAILED": "red"}.get(state, "")
                grid.add_row(name, state, style=colour)
            self.live.update(grid)
        else:
            for name, state in said.items():
                if self.before.get(name) != state:
                    print(f"{name}: {state}", flush=True)
        self.before = said
