"""Pairs onto a cluster: one run each, at most so many at once, what is finished skipped.

A run is called after its pair and the digest of its compiled package, which holds every number,
the code of the components and the image. So the same name means the same work: what has succeeded
under it is not done again, and a changed number makes a new name.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngf import params
from ngf.errors import InputError
from pipelines.cluster import Cluster
from pipelines.compile import compile_pair
from pipelines.kube import connect
from pipelines.login import Login, health
from pipelines.patience import Patience, passes

EXPERIMENT = "ngf"
PAGE = 100
LOG_LINES = 20
HEALTH_TIMEOUT_S = 30.0
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
DONE = "SUCCEEDED"
REFERENCE = ("reference", "train-reference")  # the task, by its name in the UI or its component's
CRON_FIELDS = 6  # Kubeflow's begins with the seconds


@dataclass(frozen=True)
class Package:
    """A pair's compiled pipeline. name: of its runs."""

    dataset: str
    attack: str
    path: Path

    @property
    def name(self) -> str:
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return f"{self.dataset} {self.attack} {digest[:8]}"


def packages(
    numbers: params.Settings, dataset: str | None, attack: str | None, folder: Path
) -> list[Package]:
    """Of one pair, or of the whole grid where neither is given.

    Raises:
        InputError: one of the two without the other, or a name that params.yaml does not have.
    """
    grid = params.section(numbers, "grid", Path("params.yaml"))
    if (dataset is None) != (attack is None):
        raise InputError("give --dataset and --attack, or --grid")
    pairs = (
        [(dataset, attack)]
        if dataset is not None and attack is not None
        else [(one, other) for one in grid["datasets"] for other in grid["attacks"]]
    )
    for one, other in pairs:
        params.one_of(list(numbers["datasets"]), dataset=one)
        params.one_of(list(numbers["attacks"]), attack=other)
    return [Package(one, other, compile_pair(one, other, numbers, folder)) for one, other in pairs]


class Board:
    """The runs of an experiment in Kubeflow Pipelines.

    Raises:
        KubeflowError: from any method, where Kubeflow asks for a login; here also where it does not
            answer. InputError: KFP_CA is not a file.
    """

    def __init__(self, endpoint: str, cluster: Cluster, experiment: str = EXPERIMENT) -> None:
        self.endpoint, self.login = endpoint, Login.of_environment()
        # The client takes a login page for an empty answer: who asks is settled first.
        many = health(endpoint, self.login, HEALTH_TIMEOUT_S).get("multi_user", False)
        self.namespace = cluster.namespace if many else None
        self.client = self.login.client(endpoint, self.namespace or "kubeflow")
        self.account = cluster.service_account
        self.experiment: str = self.client.create_experiment(
            experiment, namespace=self.namespace
        ).experiment_id

    def runs(self) -> dict[str, Any]:
        """The newest run of each name."""
        found: dict[str, Any] = {}
        for run in self._all():
            found.setdefault(run.display_name, run)
        return found

    def _all(self) -> Iterator[Any]:
        for page in self._pages(self.client.list_runs, sort_by="created_at desc"):
            yield from page.runs or ()

    def _schedules(self) -> list[Any]:
        pages = self._pages(self.client.list_recurring_runs)
        return [one for page in pages for one in page.recurring_runs or ()]

    def _pages(self, listed: Callable[..., Any], **order: str) -> Iterator[Any]:
        """All that one of the client's lists says of the experiment."""
        token = ""
        while True:
            page = listed(
                page_token=token,
                page_size=PAGE,
                experiment_id=self.experiment,
                namespace=self.namespace,
                **order,
            )
            self._check_login()
            yield page
            token = page.next_page_token or ""
            if not token:
                return

    def _check_login(self) -> None:
        """A login that has expired: a gateway's page, which the client takes for an empty list."""
        answer = self.client._run_api.api_client.last_response
        if not answer.getheader("Content-Type", "").startswith("application/json"):
            raise self.login.refused(self.endpoint)

    def has_reference(self, run: Any) -> bool:
        """Whether the run has trained its reference, or found it in Kubeflow's cache."""
        details = self.client.get_run(run.run_id).run_details
        tasks = (details.task_details if details else None) or ()
        return any(task.display_name in REFERENCE and task.state == DONE for task in tasks)

    def start(self, package: Package) -> None:
        self.client.create_run_from_pipeline_package(
            str(package.path),
            run_name=package.name,
            experiment_id=self.experiment,
            namespace=self.namespace,
            service_account=self.account,
        )

    def repeat(self, package: Package, cron: str) -> str:
        """A schedule of the pair, unless there is one. Returns what there is now, on one line.

        Its runs take nothing from Kubeflow's cache: it would hold all that the first one did.

        Raises:
            InputError: not six fields.
        """
        if len(cron.split()) != CRON_FIELDS:
            raise InputError(f"--every takes six fields, seconds first, as '0 0 3 * * *': {cron!r}")
        name = f"{package.dataset} {package.attack}"
        for there in self._schedules():
            if there.display_name == name:
                said = there.trigger.cron_schedule.cron
                return f"{name}: there already, every {said}; --cancel '{name}' ends it"
        self.client.create_recurring_run(
            self.experiment,
            name,
            cron_expression=cron,
            pipeline_package_path=str(uncached(package.path)),
            service_account=self.account,
        )
        return f"{name}: every {cron}, in experiment {EXPERIMENT}"

    def cancel(self, name: str) -> list[str]:
        """End the run of this name or id, and delete such a schedule. Returns a line for each.

        Raises:
            InputError: nothing of the kind; the message has what there is.
        """
        active = [run for run in self._all() if run.state not in ENDED]
        schedules = self._schedules()
        runs = [run for run in active if name in (run.display_name, run.run_id)]
        gone = [one for one in schedules if name in (one.display_name, one.recurring_run_id)]
        if not runs and not gone:
            known = [run.display_name for run in active]
            known += [f"{one.display_name} (a schedule)" for one in schedules]
            raise InputError(f"no run '{name}' is under way: there is {', '.join(known) or 'none'}")
        for run in runs:
            self.client.terminate_run(run.run_id)
        for one in gone:
            self.client.delete_recurring_run(one.recurring_run_id)
        lines = [f"{run.display_name}: asked to end" for run in runs]
        return lines + [f"{one.display_name}: its schedule is deleted" for one in gone]


def uncached(file: Path) -> Path:
    """The same package, none of whose tasks may be taken from the cache, beside the file.

    kfp's own switch reaches the tasks at the top alone, and these are within an exit handler.
    """
    import yaml

    spec, *platform = yaml.safe_load_all(file.read_text())
    for component in spec["components"].values():
        for task in component.get("dag", {}).get("tasks", {}).values():
            task["cachingOptions"] = {}
    out = file.with_suffix(".uncached.yaml")
    out.write_text(yaml.safe_dump_all([spec, *platform], sort_keys=False))
    return out


def submit(
    board: Board,
    wanted: Sequence[Package],
    *,
    at_once: int | None = None,
    wait: bool = False,
    pause: float = 10.0,
    show: Callable[[Mapping[str, str]], None] = lambda states: None,
    patience: Patience | None = None,
) -> dict[str, str]:
    """Start what has not succeeded and is not under way. {name: state} at the end.

    It stays until the last is started: a data set's pairs wait for the first one's reference, and
    all for `at_once`.

    Args:
        at_once: runs under way at the same time, at most.
        wait: stay until all have ended. pause: seconds between two looks.
        show: is told the states after each look. patience: with a Kubeflow that does not answer.

    Raises:
        KubeflowError: it asks for a login, or patience has ended. What runs there goes on.
    """
    left, started = list(wanted), set[str]()
    patience = patience or Patience()
    while True:
        try:
            states = _look(board, wanted, left, started, at_once)
        except Exception as error:
            if not passes(error):
                raise
            patience.wait(error)
            continue
        patience.over()
        show(states)
        under_way = any(state not in ("", *ENDED) for state in states.values())
        if not left and not (wait and under_way):
            return states
        time.sleep(pause)


def _look(
    board: Board,
    wanted: Sequence[Package],
    left: list[Package],
    started: set[str],
    at_once: int | None,
) -> dict[str, str]:
    """Start what may start, which moves from `left` to `started`. {name: state}.

    Where the answer to a start is lost, the run may be there: the next look finds it, or starts it.
    """
    runs = board.runs()
    states = {package.name: _state(package.name, runs, started) for package in wanted}
    left[:] = [p for p in left if states[p.name] in ("", "FAILED", "CANCELED", "SKIPPED")]
    active = sum(state not in ("", *ENDED) for state in states.values())
    room = len(left) if at_once is None else max(0, at_once - active)
    for package in _free(board, wanted, left, runs, states)[:room]:
        board.start(package)
        started.add(package.name)
        left.remove(package)
        states[package.name] = "PENDING"
    return states


def _free(
    board: Board,
    wanted: Sequence[Package],
    left: Sequence[Package],
    runs: Mapping[str, Any],
    states: Mapping[str, str],
) -> list[Package]:
    """Those of `left` that may start: one at a time of a data set that has no reference yet.

    Its pairs ask for the same reference. Kubeflow's cache has it once a run has trained it; until
    then each of them would.
    """
    begun = [package for package in wanted if states[package.name]]
    busy = {package.dataset for package in begun if states[package.name] not in ENDED}
    asked = {package.dataset for package in left}
    ready = {package.dataset for package in begun if states[package.name] == DONE}
    for package in begun:
        if package.dataset in asked - ready and package.name in runs:
            ready |= {package.dataset} if board.has_reference(runs[package.name]) else set()
    free = []
    for package in left:
        if package.dataset in ready or package.dataset not in busy:
            free.append(package)
            busy.add(package.dataset)
    return free


def _state(name: str, runs: Mapping[str, Any], started: set[str]) -> str:
    """ "" where there is no run. A run that was just started may not be listed yet."""
    if name not in runs:
        return "PENDING" if name in started else ""
    return runs[name].state or "PENDING"


def failures(board: Board, names: Iterable[str], log: Callable[[str], str]) -> list[str]:
    """For each run that failed: which task, what Kubeflow says, and the end of its log.

    Args:
        log: of a pod, by its name.
    """
    runs = board.runs()
    lines = []
    for name in names:
        run = board.client.get_run(runs[name].run_id)
        details = run.run_details.task_details if run.run_details else None
        failed = [task for task in details or () if task.state == "FAILED"]
        pods = [(task, pod) for task in failed for pod in _pods(task)]
        if not pods:
            said = run.error.message if run.error else "Kubeflow names no task"
            lines.append(f"{name}: {said}")
        for task, pod in pods:
            said = f": {task.error.message}" if task.error and task.error.message else ""
            lines.append(f"{name}: task '{task.display_name}' failed{said}")
            lines += [f"    {line}" for line in log(pod).splitlines()[-LOG_LINES:]]
    return lines


def _pods(task: Any) -> list[str]:
    pods = [task.pod_name, *(child.pod_name for child in task.child_tasks or ())]
    return [pod for pod in dict.fromkeys(pods) if pod]


def pod_log(context: str | None, namespace: str, timeout: float = 10.0) -> Callable[[str], str]:
    """A function that gives the end of a pod's log, or says why there is none."""

    def log(pod: str) -> str:
        from kubernetes import client
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config.config_exception import ConfigException
        from urllib3.exceptions import HTTPError

        try:
            return str(
                client.CoreV1Api(connect(context)).read_namespaced_pod_log(
                    pod,
                    namespace,
                    container="main",
                    tail_lines=LOG_LINES,
                    _request_timeout=(timeout, timeout),
                )
            )
        except (ApiException, HTTPError, ConfigException) as error:
            said = getattr(error, "reason", None) or error
            return f"(no log of pod {pod}: {str(said).splitlines()[0]})"

    return log
