"""What a cluster lacks, before a pod starts: `ngf preflight`.

Everything is read; nothing is created but access reviews, which Kubernetes answers and forgets.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

from ngf.errors import InputError
from ngf.lineage import without_passwords
from pipelines.cluster import (
    MLFLOW_ADDRESS,
    MLFLOW_CREDENTIALS,
    RAW_ENVIRONMENT,
    Cluster,
    Resources,
)
from pipelines.image import DIRTY, image_of, revision
from pipelines.kube import connect
from pipelines.login import DENIED, KubeflowError, Login, health, short
from pipelines.web import get

OK, WARN, FAIL = "ok", "warn", "fail"
SERVER = "ml-pipeline"  # the service of Kubeflow Pipelines' API, where it is installed
LEAST_MLFLOW = (3, 0)  # aliases, logged models and the registry as this project uses them
PULL_SECRETS = ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg")
# (verb, API group, resource): what a task's pod does under its service account.
NEEDED = (
    ("get", "", "pods"),
    ("get", "", "configmaps"),
    ("get", "", "secrets"),  # the launcher reads the artifact store's
    ("create", "argoproj.io", "workflowtaskresults"),
    ("patch", "argoproj.io", "workflowtaskresults"),
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """state: ok, warn (a run may work) or fail (it will not). remedy: what to do about it."""

    check: str
    state: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:4}  {self.check:16} {self.text}" + (
            f"; {self.remedy}" if self.remedy else ""
        )


class Asked:
    """Kubernetes' APIs, each question with a time limit."""

    def __init__(self, context: str | None, timeout: float) -> None:
        from kubernetes import client
        from kubernetes.config.config_exception import ConfigException

        try:
            self.api = connect(context)
        except ConfigException as error:
            raise InputError(f"no cluster to ask: {error}") from error
        self.host = self.api.configuration.host
        self.core = client.CoreV1Api(self.api)
        self.version = client.VersionApi(self.api)
        self.access = client.AuthorizationV1Api(self.api)
        self.timeout = timeout

    def __call__(self, question: Callable[..., Any], *given: Any) -> Any:
        # To connect and to read; a single number is ignored unless it is whole.
        return question(*given, _request_timeout=(self.timeout, self.timeout))

    @functools.cached_property
    def nodes(self) -> list[Any]:
        return list(self(self.core.list_node).items)


def preflight(
    cluster: Cluster, *, context: str | None = None, kfp: str | None = None, timeout: float = 5.0
) -> Iterator[Finding]:
    """One finding a check, in the order in which they are mended.

    Args:
        context: of the kubeconfig; by default the current one. kfp: address of Kubeflow Pipelines.
        timeout: seconds for each question.

    Raises:
        InputError: there is no kubeconfig, or no such context in it; KFP_CA is not a file.
    """
    login = None if kfp is None else Login.of_environment()
    asked = Asked(context, timeout)
    first = _answered("api", _api, asked, cluster)
    yield first
    if first.state == FAIL:
        return
    for name, check in CHECKS.items():
        found = _answered(name, check, asked, cluster)
        yield found
        if name == "namespace" and found.state == FAIL:
            return
    yield from _mlflow(asked, cluster)
    if kfp is not None and login is not None:
        one = functools.partial(_kfp, address=kfp, login=login)
        yield _answered("kubeflow", one, asked, cluster)


def _answered(name: str, check: Check, asked: Asked, cluster: Cluster) -> Finding:
    """The check's finding, or why there is none.

    A question that whoever asks may not ask says nothing about the pods, which run as somebody
    else: so that is a warning, and the others are still asked.
    """
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return check(asked, cluster)
    except ApiException as error:
        if error.status in DENIED:
            text = f"could not be asked ({error.status}): {_reason(error)}"
            return Finding(name, WARN, text, "a run may work; an administrator can look")
        return Finding(name, FAIL, f"answered {error.status}: {_reason(error)}")
    except HTTPError as error:
        remedy = "check the kubeconfig's server, a VPN and proxies"
        return Finding(name, FAIL, f"no answer from {asked.host}: {short(error)}", remedy)


def _reason(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def _missing(error: Any) -> bool:
    return bool(error.status == 404)


def _api(asked: Asked, cluster: Cluster) -> Finding:
    found = asked(asked.version.get_code)
    return Finding("api", OK, f"Kubernetes {found.git_version} at {asked.host}")


def _exists(check: str, question: Callable[[], Any], what: str, remedy: str) -> Any:
    """What the question answers, or a finding where it is missing."""
    from kubernetes.client.exceptions import ApiException

    try:
        return question()
    except ApiException as error:
        if not _missing(error):
            raise
        return Finding(check, FAIL, f"there is no {what}", remedy)


def _namespace(asked: Asked, cluster: Cluster) -> Finding:
    name = cluster.namespace
    remedy = f"kubectl create namespace {name}, or set cluster.namespace"
    found = _exists(
        "namespace", lambda: asked(asked.core.read_namespace, name), f"namespace {name}", remedy
    )
    return found if isinstance(found, Finding) else Finding("namespace", OK, name)


def _service_account(asked: Asked, cluster: Cluster) -> Finding:
    account, space = cluster.service_account, cluster.namespace
    remedy = "create it and bind the role of pipelines/manifests, or set cluster.service_account"
    found = _exists(
        "service account",
        lambda: asked(asked.core.read_namespaced_service_account, account, space),
        f"service account {account} in {space}",
        remedy,
    )
    if isinstance(found, Finding):
        return found
    lacking = [
        f"{verb} {resource}"
        for verb, group, resource in NEEDED
        if not _allowed(asked, cluster, verb, group, resource)
    ]
    if lacking:
        text = f"{account} may not {', '.join(lacking)}"
        return Finding("service account", FAIL, text, "bind the role of pipelines/manifests to it")
    return Finding("service account", OK, f"{account} may do what tasks do")


def _allowed(asked: Asked, cluster: Cluster, verb: str, group: str, resource: str) -> bool:
    from kubernetes import client

    # Of one namespace: its administrator may ask this, and needs no rights over the cluster.
    review = client.V1LocalSubjectAccessReview(
        metadata=client.V1ObjectMeta(namespace=cluster.namespace),
        spec=client.V1SubjectAccessReviewSpec(
            user=f"system:serviceaccount:{cluster.namespace}:{cluster.service_account}",
            resource_attributes=client.V1ResourceAttributes(
                namespace=cluster.namespace, verb=verb, group=group, resource=resource
            ),
        ),
    )
    question = asked.access.create_namespaced_local_subject_access_review
    answer = asked(question, cluster.namespace, review)
    return bool(answer.status.allowed)


def _image(asked: Asked, cluster: Cluster) -> Finding:
    """Its name; whether it can be pulled, only a node knows."""
    try:
        image = image_of(cluster)
    except InputError as error:
        return Finding("image", FAIL, str(error))
    if image.endswith(DIRTY):
        remedy = "commit, `make image-push`, and set NGF_IMAGE to what that prints"
        return Finding("image", FAIL, f"{image} is of uncommitted changes", remedy)
    if image.startswith("localhost/"):
        remedy = "`make image-push REGISTRY=...`, and set NGF_IMAGE to what that prints"
        return Finding("image", WARN, f"{image} must be on every node already", remedy)
    return Finding("image", OK, image)


def _raw(asked: Asked, cluster: Cluster) -> Finding:
    """Where raw images come from."""
    raw, space = cluster.raw, cluster.namespace
    if raw.claim:
        remedy = "apply pipelines/manifests/claim.yaml, or set cluster.raw.claim"
        found = _exists(
            "raw images",
            lambda: asked(asked.core.read_namespaced_persistent_volume_claim, raw.claim, space),
            f"persistent volume claim {raw.claim} in {space}",
            remedy,
        )
        if isinstance(found, Finding):
            return found
        phase = found.status.phase
        if phase == "Lost":
            return Finding("raw images", FAIL, f"the volume of claim {raw.claim} is lost", remedy)
        if phase == "Pending":
            text = f"claim {raw.claim} is not bound: right where that waits for a first pod"
            return Finding("raw images", WARN, text)
        return Finding("raw images", OK, f"claim {raw.claim} is bound")
    if raw.repository is None:
        return Finding("raw images", OK, "drawn, or downloaded by the tasks")
    shown = without_passwords(raw.repository)
    if raw.secret is None:
        return _pulled(f"{shown}, without credentials")
    keys = " ".join(f"--from-literal={key}=..." for key in RAW_ENVIRONMENT)
    found = _exists(
        "raw images",
        lambda: asked(asked.core.read_namespaced_secret, raw.secret, space),
        f"secret {raw.secret} in {space} for DVC's remote and git",
        f"kubectl -n {space} create secret generic {raw.secret} {keys}, or set cluster.raw.secret",
    )
    if isinstance(found, Finding):
        return found
    held = ", ".join(key for key in RAW_ENVIRONMENT if (found.data or {}).get(key)) or "nothing"
    return _pulled(f"{shown}; {raw.secret} has {held}")


def _pulled(what: str) -> Finding:
    """From there by DVC, at the commit that is checked out here."""
    try:
        commit = revision("cluster.raw.repository")
    except InputError as error:
        return Finding("raw images", FAIL, str(error))
    if commit.endswith(DIRTY):
        text = f"pulled by DVC from {what}; at {commit[:12]}, without what is not committed here"
        return Finding("raw images", WARN, text, "commit and push what tells of images")
    return Finding("raw images", OK, f"pulled by DVC from {what}")


def _secret(asked: Asked, cluster: Cluster) -> Finding:
    name, space = cluster.mlflow_secret, cluster.namespace
    if name is None:
        text = "none asked for: MLflow's address comes from Kubeflow's plugin, or nothing is kept"
        return Finding("mlflow secret", WARN, text)
    keys = " ".join(
        f"--from-literal={key}=..." for key in (*MLFLOW_ADDRESS, "username", "password")
    )
    remedy = f"kubectl -n {space} create secret generic {name} {keys}"
    found = _exists(
        "mlflow secret",
        lambda: asked(asked.core.read_namespaced_secret, name, space),
        f"secret {name} in {space}, without which no pod starts",
        remedy,
    )
    if isinstance(found, Finding):
        return found
    held = found.data or {}
    if not held.get("tracking-uri"):
        return Finding("mlflow secret", FAIL, f"{name} has no key tracking-uri", remedy)
    if not held.get("token") and not (held.get("username") and held.get("password")):
        text = f"{name} has no token, nor username and password: right where MLflow asks for none"
        return Finding("mlflow secret", WARN, text)
    known = [key for key in (*MLFLOW_ADDRESS, *MLFLOW_CREDENTIALS) if held.get(key)]
    return Finding("mlflow secret", OK, f"{name} has {', '.join(known)}")


def _pull_secret(asked: Asked, cluster: Cluster) -> Finding:
    name, space = cluster.image_pull_secret, cluster.namespace
    if name is None:
        return Finding("pull secret", OK, "none asked for")
    remedy = f"kubectl -n {space} create secret docker-registry {name} --docker-server=..."
    found = _exists(
        "pull secret",
        lambda: asked(asked.core.read_namespaced_secret, name, space),
        f"secret {name} in {space}",
        remedy,
    )
    if isinstance(found, Finding):
        return found
    if found.type not in PULL_SECRETS:
        text = f"{name} is of type {found.type}, not {PULL_SECRETS[0]}"
        return Finding("pull secret", FAIL, text, remedy)
    return Finding("pull secret", OK, f"{name} holds a registry's credentials")


def _artifacts(asked: Asked, cluster: Cluster) -> Finding:
    """Where KFP's tasks leave their artifacts."""
    space = cluster.namespace
    found = _exists(
        "artifact store",
        lambda: asked(asked.core.read_namespaced_config_map, "kfp-launcher", space),
        f"config map kfp-launcher in {space}",
        "",
    )
    root = None if isinstance(found, Finding) else (found.data or {}).get("defaultPipelineRoot")
    if root is None:
        text = "kfp-launcher names no defaultPipelineRoot: Kubeflow's own store is used"
        return Finding("artifact store", WARN, text, "docs/cluster.md, Artifacts, if not wanted")
    return Finding("artifact store", OK, root)


def _nodes(asked: Asked, cluster: Cluster) -> Finding:
    nodes = asked.nodes
    usable = [node for node in nodes if _schedulable(node, cluster, heavy=False)]
    if not any(_holds(node, cluster.light) for node in usable):
        text = f"of {len(nodes)} nodes none has {cluster.light.cpu} CPU, {cluster.light.memory}"
        return Finding("nodes", FAIL, text, "lower cluster.light or add a node")
    return Finding("nodes", OK, f"{len(usable)} of {len(nodes)} take tasks")


def _accelerators(asked: Asked, cluster: Cluster) -> Finding:
    kind, wanted = cluster.accelerator, cluster.node_selector
    if kind is None:
        return Finding("accelerators", OK, "none asked for")
    nodes = asked.nodes
    selected = [n for n in nodes if wanted.items() <= (n.metadata.labels or {}).items()]
    tolerated = [node for node in selected if _schedulable(node, cluster, heavy=True)]
    having = [n for n in tolerated if int((n.status.allocatable or {}).get(kind, 0))]
    fit = [node for node in having if _holds(node, cluster.heavy)]
    share = f"{cluster.heavy.cpu} CPU, {cluster.heavy.memory}"
    steps = (
        (selected, f"has the labels {wanted}", "set cluster.node_selector"),
        (tolerated, "is ready and free of taints that are not tolerated", "cluster.tolerations"),
        (having, f"has a {kind} to allocate", "install the device plugin, or set"
                                              " cluster.accelerator"),
        (fit, f"has {share} besides", "lower cluster.heavy"),
    )  # fmt: skip
    before = nodes
    for left, what, remedy in steps:
        if not left:
            return Finding("accelerators", FAIL, f"of {len(before)} nodes none {what}", remedy)
        before = left
    return Finding("accelerators", OK, f"{len(fit)} of {len(nodes)} nodes have a {kind}")


def _schedulable(node: Any, cluster: Cluster, *, heavy: bool) -> bool:
    """Whether the node is ready and has no taint that keeps the task's pod away."""
    if node.spec.unschedulable:
        return False
    ready = [c.status for c in node.status.conditions or () if c.type == "Ready"]
    tolerations = cluster.tolerations if heavy else []
    return ready == ["True"] and all(
        taint.effect == "PreferNoSchedule"
        or any(one.covers(taint.key, taint.value, taint.effect) for one in tolerations)
        for taint in node.spec.taints or ()
    )


def _holds(node: Any, needs: Resources) -> bool:
    from kubernetes.utils import parse_quantity

    has = node.status.allocatable or {}
    wanted = {"cpu": needs.cpu, "memory": needs.memory}
    return all(
        parse_quantity(has.get(key, "0")) >= parse_quantity(value) for key, value in wanted.items()
    )


Check = Callable[[Asked, Cluster], Finding]
CHECKS: dict[str, Check] = {
    "namespace": _namespace,
    "service account": _service_account,
    "image": _image,
    "raw images": _raw,
    "mlflow secret": _secret,
    "pull secret": _pull_secret,
    "artifact store": _artifacts,
    "nodes": _nodes,
    "accelerators": _accelerators,
}


def _mlflow(asked: Asked, cluster: Cluster) -> Iterator[Finding]:
    """The server that the secret names, as far as it can be reached from here."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    if cluster.mlflow_secret is None:
        return
    try:
        secret = asked(asked.core.read_namespaced_secret, cluster.mlflow_secret, cluster.namespace)
    except (ApiException, HTTPError):
        return  # said already
    held = {key: base64.b64decode(value).decode() for key, value in (secret.data or {}).items()}
    if not held.get("tracking-uri"):
        return
    address = held["tracking-uri"].rstrip("/")
    shown = without_passwords(address)
    try:
        version = get(f"{address}/version", asked.timeout, _credentials(held)).strip()
        search = f"{address}/api/2.0/mlflow/registered-models/search"
        get(search, asked.timeout, _credentials(held))
    except urllib.error.HTTPError as error:
        remedy = "check the credentials in the secret, and the server's registry"
        yield Finding("mlflow", FAIL, f"{shown} answered {error.code}", remedy)
        return
    except (OSError, ValueError) as error:
        text = f"{shown} cannot be reached from here: {short(error)}"
        yield Finding("mlflow", WARN, text, "right where the address is the cluster's own")
        return
    number = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if number < LEAST_MLFLOW:
        text = f"{shown} is MLflow {version}"
        yield Finding("mlflow", FAIL, text, "run a server of version 3 or newer")
        return
    yield Finding("mlflow", OK, f"{shown} is MLflow {version}, with a registry")


def _kfp(asked: Asked, cluster: Cluster, address: str, login: Login) -> Finding:
    shown = without_passwords(address)
    try:
        many = health(address, login, asked.timeout).get("multi_user", False)
    except KubeflowError as error:
        return Finding("kubeflow", FAIL, str(error), error.remedy)
    if many:
        return Finding("kubeflow", OK, f"Kubeflow Pipelines at {shown}, for many users")
    # For one user it runs pods where it is itself, whatever a run asks for.
    found = _exists(
        "kubeflow",
        lambda: asked(asked.core.read_namespaced_service, SERVER, cluster.namespace),
        f"{SERVER} in {cluster.namespace}, and Kubeflow at {shown} is for a single user",
        "it runs pods in its own namespace: set cluster.namespace to that",
    )
    if isinstance(found, Finding):
        return dataclasses.replace(found, state=WARN)
    return Finding("kubeflow", OK, f"Kubeflow Pipelines at {shown}, for a single user")


def _credentials(held: dict[str, str]) -> dict[str, str]:
    """The header that MLflow's client would send: a name goes before a token."""
    if not held.get("username"):
        return {"Authorization": f"Bearer {held['token']}"} if held.get("token") else {}
    pair = f"{held['username']}:{held.get('password', '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
