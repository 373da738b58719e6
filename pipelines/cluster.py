"""Where tasks run: the section `cluster:` of params.yaml, and what it makes of a task."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ngf import params
from ngf.cores import VARIABLE
from ngf.errors import InputError

if TYPE_CHECKING:
    from kfp import dsl

# Of cluster.mlflow_secret. A pod without the address would write into a file of its own, and
# `promote` would find out after all the training: Kubernetes does not start it.
MLFLOW_ADDRESS = {"tracking-uri": "MLFLOW_TRACKING_URI"}
# What the server asks for; each may be missing.
MLFLOW_CREDENTIALS = {
    "username": "MLFLOW_TRACKING_USERNAME",
    "password": "MLFLOW_TRACKING_PASSWORD",
    "token": "MLFLOW_TRACKING_TOKEN",
}
# Of cluster.raw.secret; each may be missing.
RAW_ENVIRONMENT = {
    "aws-access-key-id": "AWS_ACCESS_KEY_ID",
    "aws-secret-access-key": "AWS_SECRET_ACCESS_KEY",
    "aws-endpoint-url": "AWS_ENDPOINT_URL",
    "git-token": "NGF_GIT_TOKEN",
}
RAW_FOLDER = "/work/data"  # `data` in the image's working directory
CPU = re.compile(r"\d+(\.\d+)?|\d+m")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a task asks for. cpu, memory: as Kubernetes writes them; more memory ends the task.
    hours: after which it is stopped. shared_memory: size of /dev/shm, which counts as memory, or
    None for the cluster's 64 MiB."""

    cpu: str
    memory: str
    hours: float
    shared_memory: str | None = None

    @property
    def threads(self) -> int:
        """How many run at a time on this share: whole cores, and one at least."""
        number = float(self.cpu.rstrip("m"))
        return max(1, int(number / 1000 if self.cpu.endswith("m") else number))


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a failed task is tried again; wait: before the first time, as 30s, then `factor`
    times as long as the last, but no longer than `longest`."""

    count: int
    wait: str
    factor: float
    longest: str


@dataclass(frozen=True, kw_only=True)
class Toleration:
    key: str | None = None
    operator: str = "Exists"
    value: str | None = None
    effect: str | None = None

    def covers(self, key: str, value: str | None, effect: str) -> bool:
        """Whether a pod that tolerates this may run on a node with that taint."""
        if self.effect not in (None, effect):
            return False
        if self.operator == "Exists":
            return self.key in (None, key)
        return (self.key, self.value or "") == (key, value or "")


@dataclass(frozen=True, kw_only=True)
class Raw:
    """Where `prepare` finds raw images, unless it downloads them or they are drawn.

    repository: git address of a checkout of this project whose DVC tracks them. secret: holds what
    DVC's remote and git ask for. claim: a persistent volume claim that holds them instead; its root
    becomes the folder `data`.
    """

    repository: str | None
    secret: str | None
    claim: str | None

    def __post_init__(self) -> None:
        if self.repository and self.claim:
            raise InputError("cluster.raw: give a repository or a claim, not both")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """`heavy` tasks run networks over many images; where there is an accelerator they ask for one,
    on nodes that `node_selector` selects and `tolerations` tolerate."""

    namespace: str
    service_account: str
    image: str | None
    mlflow_secret: str | None
    image_pull_secret: str | None
    raw: Raw
    accelerator: str | None
    accelerators: int
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Toleration] = field(default_factory=list)
    light: Resources
    heavy: Resources
    retries: Retries

    @classmethod
    def of(cls, section: params.Settings) -> Cluster:
        """From the section `cluster`, each of its keys checked.

        Raises:
            InputError: an unknown or missing key, or a value that Kubernetes would refuse.
        """
        given = params.options(_section, section, "cluster")
        parts = {"raw": Raw, "light": Resources, "heavy": Resources, "retries": Retries}
        for name, kind in parts.items():
            given[name] = params.parse(kind, given[name], f"cluster.{name}")
        given["tolerations"] = [
            params.parse(Toleration, one, f"cluster.tolerations[{place}]")
            for place, one in enumerate(given["tolerations"])
        ]
        for one in given["tolerations"]:
            params.one_of(("Exists", "Equal"), toleration_operator=one.operator)
            if one.effect is not None:
                params.one_of(EFFECTS, toleration_effect=one.effect)
        for key, value in given["node_selector"].items():
            if not isinstance(value, str):
                raise InputError(f"cluster.node_selector.{key}: {value!r} is not str: quote it")
        if given["accelerators"] != 1:
            raise InputError(
                f"cluster.accelerators must be 1, got {given['accelerators']}: a task is one "
                "process and uses one; for several, torchrun in a job of your own"
            )
        params.at_least(0, **{"cluster.retries.count": given["retries"].count})
        for name in ("light", "heavy"):
            params.within(f"cluster.{name}.hours", given[name].hours, 1 / 60, 24 * 365)
            if not CPU.fullmatch(cpu := given[name].cpu):
                raise InputError(f"cluster.{name}.cpu: {cpu!r} is no number as '4', '0.5', '500m'")
        return cls(**given)


def _section(
    *,
    namespace: str,
    service_account: str,
    image: str | None,
    mlflow_secret: str | None,
    image_pull_secret: str | None,
    raw: dict,
    accelerator: str | None,
    accelerators: int,
    node_selector: dict,
    tolerations: list[dict],
    light: dict,
    heavy: dict,
    retries: dict,
) -> None:
    """The section's keys and their kinds."""


def place(
    task: dsl.PipelineTask, cluster: Cluster, image: str, *, heavy: bool = False
) -> dsl.PipelineTask:
    """Image, resources, time-out, retries and credentials; an accelerator where it is heavy.

    All that a task writes beside its artifacts goes to /tmp, so the root may be read-only.
    """
    from kfp import kubernetes

    task.set_container_image(image)
    needs = cluster.heavy if heavy else cluster.light
    task.set_cpu_request(needs.cpu)
    task.set_memory_request(needs.memory).set_memory_limit(needs.memory)
    again = cluster.retries
    if again.count:
        task.set_retry(again.count, again.wait, again.factor, again.longest)
    kubernetes.set_timeout(task, round(3600 * needs.hours))
    kubernetes.empty_dir_mount(task, "scratch", "/tmp")
    if needs.shared_memory:
        kubernetes.empty_dir_mount(
            task, "shared-memory", "/dev/shm", medium="Memory", size_limit=needs.shared_memory
        )
    if heavy and cluster.accelerator:
        _accelerate(task, cluster)
    if cluster.image_pull_secret:
        kubernetes.set_image_pull_secrets(task, [cluster.image_pull_secret])
    if cluster.mlflow_secret:
        secret = cluster.mlflow_secret
        kubernetes.use_secret_as_env(task, secret, MLFLOW_ADDRESS)
        kubernetes.use_secret_as_env(task, secret, MLFLOW_CREDENTIALS, optional=True)
    return task


def hold_to_share(task: dsl.PipelineTask, cluster: Cluster, *, heavy: bool = False) -> None:
    """As many threads and processes as the task asks for cores.

    By default there would be one for each core of the node: far more than it may use, and sums in
    another order, so other bytes, on each kind of node.
    """
    threads = str((cluster.heavy if heavy else cluster.light).threads)
    task.set_env_variable(VARIABLE, threads)
    task.set_env_variable("OMP_NUM_THREADS", threads)


def place_raw(task: dsl.PipelineTask, raw: Raw) -> None:
    """The folder for raw images: a claim's, or an empty one to pull or download into."""
    from kfp import kubernetes

    if raw.claim:
        kubernetes.mount_pvc(task, raw.claim, RAW_FOLDER)
    else:
        kubernetes.empty_dir_mount(task, "raw-images", RAW_FOLDER)
    if raw.secret:
        kubernetes.use_secret_as_env(task, raw.secret, RAW_ENVIRONMENT, optional=True)


def _accelerate(task: dsl.PipelineTask, cluster: Cluster) -> None:
    from kfp import kubernetes

    task.set_accelerator_type(cluster.accelerator).set_accelerator_limit(1)
    for key, value in cluster.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for one in cluster.tolerations:
        chosen: dict[str, Any] = {
            "key": one.key, "operator": one.operator, "value": one.value, "effect": one.effect
        }  # fmt: skip
        kubernetes.add_toleration(task, **{k: v for k, v in chosen.items() if v is not None})
