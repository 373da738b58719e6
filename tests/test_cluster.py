"""What compiled packages ask of a cluster: fields of the IR against `cluster:` in params.yaml."""

import copy

import pytest
import yaml

from ngf.errors import InputError
from pipelines.cluster import Cluster, Toleration
from pipelines.compile import compile_pair

HEAVY = {"train-reference", "train-victim", "purify", "purify-2", "purify-3"}
GPU = {
    "namespace": "ml",
    "service_account": "runner",
    "mlflow_secret": "records",
    "image_pull_secret": "registry",
    "accelerator": "nvidia.com/gpu",
    "accelerators": 2,
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
    "tolerations": [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "team", "operator": "Equal", "value": "security"},
    ],
    "light": {"cpu": "1", "memory": "4G", "hours": 1},
    "heavy": {"cpu": "8", "memory": "32G", "hours": 6.5, "shared_memory": "4Gi"},
    "retries": {"count": 3, "wait": "10s", "factor": 3.0, "longest": "5m"},
}


def compiled(numbers, cluster, folder):
    """(tasks of the pair, their containers, what Kubernetes gets), by the task's name."""
    package = compile_pair("signs", "badnets", {**numbers, "cluster": cluster}, folder)
    spec, platform = yaml.safe_load_all(package.read_text())
    executors = spec["deploymentSpec"]["executors"]
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    tasks = {
        **spec["components"]["comp-exit-handler-1"]["dag"]["tasks"],
        "report-status": spec["root"]["dag"]["tasks"]["report-status"],
    }
    assert {name.removeprefix("exec-") for name in executors} == set(tasks)
    containers = {name: executors[f"exec-{name}"]["container"] for name in tasks}
    return tasks, containers, {name: kubernetes[f"exec-{name}"] for name in tasks}


def test_heavy_tasks_ask_for_the_accelerator_and_its_nodes(numbers, tmp_path):
    _, containers, kubernetes = compiled(numbers, GPU, tmp_path)
    for name, container in containers.items():
        resources, node = container["resources"], kubernetes[name]
        if name in HEAVY:
            accelerator = resources["accelerator"]
            assert accelerator["resourceType"] == "nvidia.com/gpu"
            assert accelerator["resourceCount"] == "2"
            assert node["nodeSelector"]["labels"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
            given = [
                {key: one[key] for key in ("key", "operator", "value", "effect") if key in one}
                for one in node["tolerations"]
            ]
            assert given == GPU["tolerations"]
        else:
            assert "accelerator" not in resources
            assert not {"nodeSelector", "tolerations"} & node.keys()


def test_without_an_accelerator_no_task_looks_for_one(numbers, tmp_path):
    _, containers, kubernetes = compiled(numbers, {**GPU, "accelerator": None}, tmp_path)
    assert not any("accelerator" in one["resources"] for one in containers.values())
    assert not any({"nodeSelector", "tolerations"} & one.keys() for one in kubernetes.values())


def test_every_task_asks_for_its_share_of_a_node_and_of_time(numbers, tmp_path):
    _, containers, kubernetes = compiled(numbers, GPU, tmp_path)
    for name, container in containers.items():
        cpu, memory, seconds = (8.0, 32.0, 23400) if name in HEAVY else (1.0, 4.0, 3600)
        assert container["resources"]["cpuRequest"] == cpu
        assert container["resources"]["memoryRequest"] == memory
        assert kubernetes[name]["activeDeadlineSeconds"] == str(seconds)
        shared = kubernetes[name].get("emptyDirMounts", [])
        assert [(one["mountPath"], one["medium"], one["sizeLimit"]) for one in shared] == (
            [("/dev/shm", "Memory", "4Gi")] if name in HEAVY else []
        )


def test_every_task_is_tried_again_with_growing_pauses(numbers, tmp_path):
    tasks, _, _ = compiled(numbers, GPU, tmp_path)
    for task in tasks.values():
        assert task["retryPolicy"] == {
            "maxRetryCount": 3,
            "backoffDuration": "10s",
            "backoffFactor": 3.0,
            "backoffMaxDuration": "300s",
        }
    never = {**GPU, "retries": {**GPU["retries"], "count": 0}}
    assert not any("retryPolicy" in task for task in compiled(numbers, never, tmp_path)[0].values())


def test_credentials_come_from_the_secrets_named_there_and_from_nowhere_else(numbers, tmp_path):
    _, containers, kubernetes = compiled(numbers, GPU, tmp_path)
    for name, node in kubernetes.items():
        (secret,) = node["secretAsEnv"]
        assert secret["secretName"] == "records"
        assert {one["secretKey"]: one["envVar"] for one in secret["keyToEnv"]} == {
            "tracking-uri": "MLFLOW_TRACKING_URI",
            "username": "MLFLOW_TRACKING_USERNAME",
            "password": "MLFLOW_TRACKING_PASSWORD",
        }
        assert [one["secretName"] for one in node["imagePullSecret"]] == ["registry"]
        assert "env" not in containers[name]
    plain = compiled(numbers, {**GPU, "image_pull_secret": None}, tmp_path)[2]
    assert not any("imagePullSecret" in node for node in plain.values())


def test_what_changes_the_registry_and_what_ends_a_run_is_never_taken_from_the_cache(
    numbers, tmp_path
):
    tasks, _, _ = compiled(numbers, GPU, tmp_path)
    kept = {
        name
        for name, task in tasks.items()
        if task.get("cachingOptions", {}).get("enableCache", False)
    }
    assert kept == set(tasks) - {"promote", "report-status"}


def test_the_end_is_reported_whatever_happened(numbers, tmp_path):
    end = compiled(numbers, GPU, tmp_path)[0]["report-status"]
    assert end["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert end["dependentTasks"] == ["exit-handler-1"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpu": 1}, "cluster: unknown key 'gpu'"),
        ({"accelerators": 0}, "cluster.accelerators must be at least 1, got 0"),
        ({"light": {"cpu": "1"}}, "cluster.light: missing key 'memory'"),
        ({"node_selector": {"gpu": True}}, "cluster.node_selector.gpu: True is not str: quote it"),
        ({"tolerations": [{"operator": "In"}]}, "unknown toleration_operator 'In'"),
        ({"tolerations": [{"effect": "Never"}]}, "unknown toleration_effect 'Never'"),
        ({"heavy": {**GPU["heavy"], "hours": 0}}, "cluster.heavy.hours must lie between"),
    ],
)
def test_a_wrong_section_is_named(change, said):
    with pytest.raises(InputError) as error:
        Cluster.of({**copy.deepcopy(GPU), **change})
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("toleration", "covered"),
    [
        ({}, True),
        ({"key": "gpu"}, True),
        ({"key": "other"}, False),
        ({"key": "gpu", "operator": "Equal", "value": "yes"}, True),
        ({"key": "gpu", "operator": "Equal", "value": "no"}, False),
        ({"key": "gpu", "effect": "NoSchedule"}, True),
        ({"key": "gpu", "effect": "NoExecute"}, False),
    ],
)
def test_tolerations_cover_taints_as_kubernetes_says(toleration, covered):
    assert Toleration(**toleration).covers("gpu", "yes", "NoSchedule") is covered
