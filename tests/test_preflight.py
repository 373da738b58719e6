"""Preflight against a loopback server that answers as Kubernetes' API does."""

import base64
import copy
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from test_cluster import GPU
from typer.testing import CliRunner

from ngf.cli import app
from ngf.errors import InputError
from pipelines.cluster import Cluster
from pipelines.preflight import CHECKS, preflight

SPACE = "/api/v1/namespaces/ml"
REVIEW = "/apis/authorization.k8s.io/v1/namespaces/ml/localsubjectaccessreviews"
HANGS = object()


def status(code, message):
    """What Kubernetes answers when it does not do as asked."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return code, {**body, "message": message}


def encoded(**values):
    return {
        key.replace("_", "-"): base64.b64encode(value.encode()).decode()
        for key, value in values.items()
    }


def node(name, labels=None, taints=None, ready="True", **allocatable):
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": taints or []},
        "status": {
            "allocatable": {"cpu": "16", "memory": "64Gi", **allocatable},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


PRODUCT = GPU["node_selector"]
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
GPUS = {"nvidia.com/gpu": "4"}
NODES = [node("plain"), node("gpu", PRODUCT, [TAINT], **GPUS)]


def whole(server):
    """The answers of a cluster that lacks nothing."""
    address = f"http://user:word@127.0.0.1:{server.server_port}"
    pull = {"type": "kubernetes.io/dockerconfigjson", "data": encoded(dockerconfigjson="{}")}
    held = encoded(tracking_uri=address.replace("user:word@", ""), username="me", password="pass")
    return {
        "/version/": {"gitVersion": "v1.34.1", "major": "1", "minor": "34", "gitCommit": "c",
                      "gitTreeState": "clean", "buildDate": "d", "goVersion": "g",
                      "compiler": "gc", "platform": "linux/amd64"},
        SPACE: {"metadata": {"name": "ml"}},
        f"{SPACE}/serviceaccounts/runner": {"metadata": {"name": "runner"}},
        REVIEW: {"spec": {}, "status": {"allowed": True}},
        f"{SPACE}/secrets/records": {"type": "Opaque", "data": held},
        f"{SPACE}/secrets/registry": pull,
        f"{SPACE}/configmaps/kfp-launcher": {"data": {"defaultPipelineRoot": "s3://runs"}},
        "/api/v1/nodes": {"items": NODES},
        "/version": "3.17.0",
        "/api/2.0/mlflow/registered-models/search": {"registered_models": []},
        "/apis/v2beta1/healthz": {"multi_user": True},
    }  # fmt: skip


class Server(ThreadingHTTPServer):
    """Answers from `answers`: {path: JSON, text, (status, JSON) or HANGS}."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.headers = [], {}
        self.answers = whole(self)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        self.server.headers[path] = dict(self.headers)
        length = int(self.headers.get("Content-Length") or 0)
        given = json.loads(self.rfile.read(length)) if length else None
        answer = self.server.answers.get(path, status(404, f"{path} not found"))
        answer = answer(given) if callable(answer) else answer
        if answer is HANGS:
            time.sleep(1)
            return
        code, body = answer if isinstance(answer, tuple) else (200, answer)
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if code in (301, 302):
            self.send_header("Location", body)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    from kubernetes.config import kube_config

    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    context = {"name": "here", "context": {"cluster": "c", "user": "u"}}
    cluster = {"server": f"http://127.0.0.1:{server.server_port}"}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [context],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    place = tmp_path / "kubeconfig"
    place.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(place))
    yield server
    server.shutdown()
    server.server_close()


def findings(server, timeout=5.0, kfp=None, **changes):
    cluster = Cluster.of({**copy.deepcopy(GPU), **changes})
    return {found.check: found for found in preflight(cluster, kfp=kfp, timeout=timeout)}


def test_a_cluster_that_lacks_nothing(server):
    address = f"http://127.0.0.1:{server.server_port}"
    found = findings(server, kfp=address)
    assert list(found) == ["api", *CHECKS, "mlflow", "kubeflow"]
    assert {one.state for one in found.values()} == {"ok"}, found
    assert found["api"].text == f"Kubernetes v1.34.1 at {address}"
    assert found["accelerators"].text == "1 of 2 nodes have a nvidia.com/gpu"
    assert found["mlflow"].text == f"{address} is MLflow 3.17.0, with a registry"
    assert server.headers["/version"]["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    ("path", "check", "text"),
    [
        (SPACE, "namespace", "there is no namespace ml"),
        (f"{SPACE}/serviceaccounts/runner", "service account", "there is no service account"),
        (f"{SPACE}/secrets/records", "mlflow secret", "there is no secret records in ml"),
        (f"{SPACE}/secrets/registry", "pull secret", "there is no secret registry in ml"),
    ],
)
def test_what_is_missing_is_named_with_a_remedy(server, path, check, text):
    del server.answers[path]
    found = findings(server)[check]
    assert found.state == "fail"
    assert found.text.startswith(text)
    assert found.remedy


def test_nothing_else_is_asked_where_the_namespace_is_missing(server):
    del server.answers[SPACE]
    assert list(findings(server)) == ["api", "namespace"]


CLAIM = f"{SPACE}/persistentvolumeclaims/images"
RAW = {"repository": None, "secret": None, "claim": "images"}


def test_a_claim_of_raw_images(server):
    def found(phase=None):
        server.answers[CLAIM] = {"status": {"phase": phase}} if phase else status(404, "not found")
        one = findings(server, raw=RAW)["raw images"]
        return one.state, one.text

    assert found() == ("fail", "there is no persistent volume claim images in ml")
    assert found("Bound") == ("ok", "claim images is bound")
    assert found("Lost") == ("fail", "the volume of claim images is lost")
    assert found("Pending")[0] == "warn"
    server.answers[CLAIM] = status(403, "no")
    assert "could not be asked (403)" in findings(server, raw=RAW)["raw images"].text
    server.answers[CLAIM] = HANGS
    assert "no answer" in findings(server, timeout=0.2, raw=RAW)["raw images"].text


def test_a_repository_of_raw_images_and_its_secret(server, monkeypatch):
    monkeypatch.setattr("pipelines.preflight.revision", lambda what: "0a" * 20)
    raw = {"repository": "https://me:word@git.example.org/ngf", "secret": "keys", "claim": None}
    found = findings(server, raw=raw)["raw images"]
    assert (found.state, found.text[:26]) == ("fail", "there is no secret keys in")
    assert "--from-literal=git-token=..." in found.remedy
    server.answers[f"{SPACE}/secrets/keys"] = {"data": encoded(git_token="t")}
    found = findings(server, raw=raw)["raw images"]
    assert found.state == "ok"
    assert found.text == "pulled by DVC from https://git.example.org/ngf; keys has git-token"
    assert findings(server, raw={**raw, "secret": None})["raw images"].state == "ok"
    monkeypatch.setattr("pipelines.preflight.revision", lambda what: "0a" * 20 + "-dirty")
    found = findings(server, raw=raw)["raw images"]
    assert found.state == "warn"
    assert found.text.endswith("at 0a0a0a0a0a0a, without what is not committed here")


def test_the_image_is_pinned_clean_and_where_nodes_find_it(server):
    place = "registry.example.org/ngf-python"
    for image, state, text in (
        (f"{place}:0.1.0-cpu-0123456789ab", "ok", place),
        (f"{place}:latest", "fail", "may change under its name"),
        (f"{place}:0.1.0-cpu-0123456789ab-dirty", "fail", "uncommitted"),
        ("localhost/ngf-python:0.1.0-cpu-0123456789ab", "warn", "localhost"),
    ):
        found = findings(server, image=image)["image"]
        assert found.state == state
        assert text in str(found)


def test_without_a_secret_mlflow_is_kubeflows_to_name(server):
    found = findings(server, mlflow_secret=None)
    assert found["mlflow secret"].state == "warn"
    assert "mlflow" not in found


PATHS = {
    "namespace": SPACE,
    "service account": f"{SPACE}/serviceaccounts/runner",
    "mlflow secret": f"{SPACE}/secrets/records",
    "pull secret": f"{SPACE}/secrets/registry",
    "artifact store": f"{SPACE}/configmaps/kfp-launcher",
    "nodes": "/api/v1/nodes",
    "accelerators": "/api/v1/nodes",
    "api": "/version/",
}


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("check", PATHS)
def test_a_question_that_is_denied_is_a_warning_and_the_others_are_asked(server, check, code):
    server.answers[PATHS[check]] = status(code, 'user "me" cannot get that')
    found = findings(server)
    assert list(found)[: 1 + len(CHECKS)] == ["api", *CHECKS]
    assert found[check].state == "warn"
    assert found[check].text == f'could not be asked ({code}): user "me" cannot get that'
    others = {one.state for name, one in found.items() if PATHS.get(name) != PATHS[check]}
    assert others == {"ok"}


def test_who_may_read_nothing_but_the_namespace_is_not_kept_from_submitting(server):
    """An edit role in one namespace: neither nodes nor namespaces nor reviews are its to ask."""
    for path in (SPACE, REVIEW, "/api/v1/nodes"):
        server.answers[path] = status(403, "cannot at the cluster scope")
    found = findings(server)
    assert {name for name, one in found.items() if one.state == "warn"} == {
        "namespace", "service account", "nodes", "accelerators"
    }  # fmt: skip
    assert not [one for one in found.values() if one.state == "fail"]


@pytest.mark.parametrize("check", PATHS)
def test_a_question_without_an_answer_ends(server, check):
    server.answers[PATHS[check]] = HANGS
    started = time.monotonic()
    found = findings(server, timeout=0.2)[check]
    assert time.monotonic() - started < 5
    assert found.state == "fail"
    assert found.text.startswith(f"no answer from http://127.0.0.1:{server.server_port}")


def test_a_server_that_is_not_there(server):
    server.shutdown()
    server.server_close()
    found = findings(server)
    assert list(found) == ["api"]
    assert found["api"].state == "fail"
    assert "Connection refused" in found["api"].text


def test_what_the_service_account_may_not_do(server):
    def review(given):
        asked = given["spec"]
        assert asked["user"] == "system:serviceaccount:ml:runner"
        attributes = asked["resourceAttributes"]
        assert attributes["namespace"] == "ml"
        return {"spec": {}, "status": {"allowed": attributes["resource"] != "workflowtaskresults"}}

    server.answers[REVIEW] = review
    found = findings(server)["service account"]
    assert found.state == "fail"
    assert found.text == "runner may not create workflowtaskresults, patch workflowtaskresults"


def test_a_secret_without_its_keys(server):
    place = f"{SPACE}/secrets/records"
    server.answers[place] = {"data": encoded(username="me")}
    found = findings(server)
    assert found["mlflow secret"].text == "records has no key tracking-uri"
    assert "mlflow" not in found
    server.answers[place] = {"data": encoded(tracking_uri="http://127.0.0.1:1")}
    found = findings(server)
    assert found["mlflow secret"].state == "warn"
    assert "no token, nor username and password" in found["mlflow secret"].text
    address = f"http://127.0.0.1:{server.server_port}"
    server.answers[place] = {"data": encoded(tracking_uri=address, token="word")}
    found = findings(server)
    assert (found["mlflow secret"].state, found["mlflow"].state) == ("ok", "ok")
    assert found["mlflow secret"].text == "records has tracking-uri, token"
    assert server.headers["/version"]["Authorization"] == "Bearer word"


def test_a_pull_secret_of_another_type(server):
    server.answers[f"{SPACE}/secrets/registry"] = {"type": "Opaque", "data": {}}
    found = findings(server)["pull secret"]
    assert (found.state, found.text[:26]) == ("fail", "registry is of type Opaque")
    assert findings(server, image_pull_secret=None)["pull secret"].text == "none asked for"


def test_kubeflows_own_store_is_said(server):
    del server.answers[PATHS["artifact store"]]
    assert findings(server)["artifact store"].state == "warn"


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([node("a"), node("b")], "of 2 nodes none has the labels"),
        ([node("a", PRODUCT, [TAINT, {"key": "x", "effect": "NoExecute"}], **GPUS)],
         "of 1 nodes none is ready and free of taints"),
        ([node("a", PRODUCT, ready="False", **GPUS)], "of 1 nodes none is ready"),
        ([node("a", PRODUCT), node("b")], "of 1 nodes none has a nvidia.com/gpu"),
        ([node("a", PRODUCT, **{"nvidia.com/gpu": "0"})], "of 1 nodes none has a nvidia.com/gpu"),
        ([node("a", PRODUCT, memory="16Gi", **GPUS)], "of 1 nodes none has 8 CPU, 32G besides"),
    ],
)  # fmt: skip
def test_why_no_node_fits_is_said(server, nodes, text):
    server.answers["/api/v1/nodes"] = {"items": nodes}
    found = findings(server)["accelerators"]
    assert found.state == "fail"
    assert found.text.startswith(text)
    assert findings(server, accelerator=None)["accelerators"].text == "none asked for"


def test_tasks_without_an_accelerator_need_a_node_too(server):
    server.answers["/api/v1/nodes"] = {"items": [node("gpu", PRODUCT, [TAINT], **GPUS)]}
    found = findings(server)["nodes"]
    assert (found.state, found.text) == ("fail", "of 1 nodes none has 1 CPU, 4G")
    server.answers["/api/v1/nodes"] = {"items": [node("a", cpu="500m")]}
    assert findings(server)["nodes"].state == "fail"


@pytest.mark.parametrize(
    ("path", "answer", "state", "text"),
    [
        ("/version", "2.22.0", "fail", "is MLflow 2.22.0"),
        ("/version", (401, "no"), "fail", "answered 401"),
        ("/api/2.0/mlflow/registered-models/search", (404, "no"), "fail", "answered 404"),
        ("/version", HANGS, "warn", "cannot be reached from here"),
    ],
)
def test_mlflow_is_asked_for_version_and_registry(server, path, answer, state, text):
    server.answers[path] = answer
    found = findings(server, timeout=0.5)["mlflow"]
    assert (found.state, text in found.text) == (state, True), found


def test_passwords_are_not_printed(server):
    address = f"http://user:secret-word@127.0.0.1:{server.server_port}"
    server.answers[f"{SPACE}/secrets/records"] = {"data": encoded(tracking_uri=address)}
    assert "secret-word" not in str(findings(server)["mlflow"])


def test_kubeflow_that_does_not_answer(server):
    found = findings(server, kfp="http://127.0.0.1:1")["kubeflow"]
    assert found.state == "fail"
    assert "port-forward" in found.remedy


HEALTH = "/apis/v2beta1/healthz"
LOGIN = "asks for a login: set KFP_TOKEN or KFP_COOKIES"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("<html>Log in</html>", LOGIN),
        ((302, "https://login.example.org/auth?back=kubeflow"), LOGIN),
        ((401, "no"), LOGIN),
        ((403, "no"), LOGIN),
        ((301, f"https://k.example.org{HEALTH}"), "has moved: ask https://k.example.org"),
        ((502, "no"), "answered 502"),
        ([], "is not Kubeflow Pipelines: its health is '[]'"),
    ],
)
def test_what_kubeflow_answers_instead_of_its_health(server, answer, said, monkeypatch):
    monkeypatch.delenv("KFP_TOKEN", raising=False)
    monkeypatch.delenv("KFP_COOKIES", raising=False)
    address = f"http://127.0.0.1:{server.server_port}"
    server.answers[HEALTH] = answer
    found = findings(server, kfp=address)["kubeflow"]
    assert (found.state, found.text) == ("fail", f"{address} {said}")
    assert server.asked.count(HEALTH) == 1  # no redirect is followed


def test_a_login_that_is_not_taken_is_named(server, monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", "old")
    server.answers[HEALTH] = (401, "no")
    found = findings(server, kfp=f"http://127.0.0.1:{server.server_port}")["kubeflow"]
    assert found.text.endswith("asks for a login: KFP_TOKEN is not taken, or has expired")
    assert server.headers[HEALTH]["Authorization"] == "Bearer old"


def test_kubeflow_for_a_single_user_runs_pods_where_it_is(server):
    address = f"http://127.0.0.1:{server.server_port}"
    server.answers[HEALTH] = {"multi_user": False}
    found = findings(server, kfp=address)["kubeflow"]
    assert (found.state, "set cluster.namespace" in found.remedy) == ("warn", True)
    assert found.text.startswith("there is no ml-pipeline in ml")
    server.answers[f"{SPACE}/services/ml-pipeline"] = {"metadata": {"name": "ml-pipeline"}}
    assert findings(server, kfp=address)["kubeflow"].state == "ok"


@pytest.mark.parametrize("lacking", [False, True])
def test_the_command_tells_and_exits(server, tmp_path, numbers, lacking):
    if lacking:
        del server.answers[SPACE]
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump({"cluster": GPU}))
    result = CliRunner().invoke(app, ["preflight", "--params", str(file)])
    assert result.exit_code == int(lacking), result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("ok    api ")
    assert len(lines) == (2 if lacking else 2 + len(CHECKS))
    found = json.loads(
        CliRunner().invoke(app, ["preflight", "--params", str(file), "--json"]).output
    )
    assert [one["check"] for one in found][:2] == ["api", "namespace"]


def test_without_a_kubeconfig_there_is_nothing_to_ask(tmp_path, monkeypatch):
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no cluster to ask"):
        list(preflight(Cluster.of(copy.deepcopy(GPU))))


def test_in_a_pod_its_service_account_asks(tmp_path, monkeypatch):
    from kubernetes.config import incluster_config, kube_config

    from pipelines.kube import connect

    for name, content in (("TOKEN", "word"), ("CERT", "certificate")):
        (tmp_path / name).write_text(content)
        monkeypatch.setattr(incluster_config, f"SERVICE_{name}_FILENAME", str(tmp_path / name))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    settings = connect(None).configuration
    assert settings.host == "https://10.0.0.1:443"
    assert settings.get_api_key_with_prefix("authorization") == "bearer word"
    with pytest.raises(InputError, match="no cluster to ask"):  # a context is a kubeconfig's
        list(preflight(Cluster.of(copy.deepcopy(GPU)), context="other"))
