"""Files for Kubernetes and compose, against what reads them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from pipelines.cluster import MLFLOW_ADDRESS, MLFLOW_CREDENTIALS, RAW_ENVIRONMENT
from pipelines.preflight import NEEDED

MANIFESTS = sorted((ROOT / "pipelines" / "manifests").glob("*.yaml"))


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_kubernetes_knows_every_field(file):
    tool = Path(sys.executable).with_name("kubernetes-validate")
    done = subprocess.run([tool, "--strict", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def documents():
    return [one for file in MANIFESTS for one in yaml.safe_load_all(file.read_text())]


def test_they_are_about_what_params_name(numbers):
    cluster = numbers["cluster"]
    found = {(one["kind"], one["metadata"]["name"]): one for one in documents()}
    assert ("Namespace", cluster["namespace"]) in found
    spaces = {one["metadata"].get("namespace", cluster["namespace"]) for one in found.values()}
    assert spaces == {cluster["namespace"]}
    keys = set(MLFLOW_ADDRESS) | set(MLFLOW_CREDENTIALS)
    assert set(found["Secret", cluster["mlflow_secret"]]["stringData"]) == keys
    assert set(found["Secret", cluster["raw"]["secret"]]["stringData"]) == set(RAW_ENVIRONMENT)
    (binding,) = (one for (kind, _), one in found.items() if kind == "RoleBinding")
    assert binding["subjects"][0]["name"] == cluster["service_account"]
    assert ("Role", binding["roleRef"]["name"]) in found
    assert any(kind == "PersistentVolumeClaim" for kind, _ in found)


def test_the_role_allows_what_preflight_asks_for():
    (role,) = (one for one in documents() if one["kind"] == "Role")
    allowed = {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    # `list` and `watch` of what may be read anyway; all else is asked for by name.
    assert {one for one in allowed if one[0] not in ("list", "watch")} == set(NEEDED)


@pytest.mark.slow
def test_a_pair_as_kubernetes_own_resources(numbers, tmp_path):
    from pipelines.compile import compile_pair, manifest_pair

    package = compile_pair("signs", "badnets", numbers, tmp_path)
    file, name = manifest_pair("signs", "badnets", numbers, tmp_path / "manifests")
    pipeline, version = yaml.safe_load_all(file.read_text())
    space = numbers["cluster"]["namespace"]
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert pipeline["metadata"] == {"name": "ngf-signs-badnets", "namespace": space}
    assert version["metadata"] == {"name": name, "namespace": space}
    assert re.fullmatch("ngf-signs-badnets-[0-9a-f]{8}", name)
    spec, platform = yaml.safe_load_all(package.read_text())
    assert version["spec"]["pipelineSpec"] == spec
    assert version["spec"]["platformSpec"] == platform
    assert version["spec"]["pipelineName"] == "ngf-signs-badnets"
    before = file.read_bytes()
    assert manifest_pair("signs", "badnets", numbers, tmp_path / "manifests")[1] == name
    assert file.read_bytes() == before


def test_the_local_platform_waits_for_health_and_holds_no_password():
    text = (ROOT / "docker" / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    lasting = {name: one for name, one in services.items() if name != "bucket"}
    assert all("healthcheck" in one for one in lasting.values())
    for one in services.values():
        for other in one.get("depends_on", {}):
            wanted = "service_completed_successfully" if other == "bucket" else "service_healthy"
            assert one["depends_on"][other]["condition"] == wanted
        assert ":latest" not in one.get("image", "")
    secret = [line for line in text.splitlines() if "PASSWORD" in line and ":" in line]
    assert secret
    assert all("${" in line or "$$" in line for line in secret)
