"""What compiled packages ask of a cluster: fields of the IR against `cluster:` in params.yaml."""

import copy
import re
import subprocess

import pytest
import yaml
from conftest import ROOT

import ngf
from ngf.errors import InputError
from pipelines.cluster import RAW_ENVIRONMENT, Cluster, Toleration
from pipelines.compile import compile_pair
from pipelines.image import DIRTY, image_of

HEAVY = {"train-reference", "poison", "train-victim", "inspect"}
HEAVY |= {f"{stage}{number}" for stage in ("purify", "evaluate") for number in ("", "-2", "-3")}
GPU = {
    "namespace": "ml",
    "service_account": "runner",
    "image": "registry.example.org/ngf-python@sha256:" + "0a" * 32,
    "mlflow_secret": "records",
    "image_pull_secret": "registry",
    "raw": {"repository": None, "secret": None, "claim": None},
    "accelerator": "nvidia.com/gpu",
    "accelerators": 1,
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


@pytest.fixture(scope="module")
def on_gpus(numbers, tmp_path_factory):
    """What is compiled for GPU, once: it takes a second or two. Read only."""
    return compiled(numbers, GPU, tmp_path_factory.mktemp("gpu"))


def test_heavy_tasks_ask_for_the_accelerator_and_its_nodes(on_gpus):
    _, containers, kubernetes = on_gpus
    for name, container in containers.items():
        resources, node = container["resources"], kubernetes[name]
        if name in HEAVY:
            accelerator = resources["accelerator"]
            assert accelerator["resourceType"] == "nvidia.com/gpu"
            assert accelerator["resourceCount"] == "1"
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


def test_every_task_asks_for_its_share_of_a_node_and_of_time(on_gpus):
    _, containers, kubernetes = on_gpus
    for name, container in containers.items():
        cpu, memory, seconds = (8.0, 32.0, 23400) if name in HEAVY else (1.0, 4.0, 3600)
        assert container["resources"]["cpuRequest"] == cpu
        assert container["resources"]["memoryRequest"] == memory
        assert container["resources"]["memoryLimit"] == memory
        assert "cpuLimit" not in container["resources"]  # an idle node's cores may be used
        assert kubernetes[name]["activeDeadlineSeconds"] == str(seconds)
        mounted = kubernetes[name]["emptyDirMounts"]
        assert "/tmp" in {one["mountPath"] for one in mounted}
        shared = [one for one in mounted if one.get("medium")]
        assert [(one["mountPath"], one["medium"], one["sizeLimit"]) for one in shared] == (
            [("/dev/shm", "Memory", "4Gi")] if name in HEAVY else []
        )


@pytest.mark.parametrize(
    ("cpu", "threads"), [("8", "8"), ("2.5", "2"), ("500m", "1"), ("3500m", "3")]
)
def test_a_task_has_as_many_threads_as_it_asks_for_cores(numbers, tmp_path, cpu, threads):
    cluster = {**GPU, "heavy": {**GPU["heavy"], "cpu": cpu}}
    for name, container in compiled(numbers, cluster, tmp_path)[1].items():
        given = {one["name"]: one["value"] for one in container["env"]}
        wanted = threads if name in HEAVY else "1"
        assert given == {"NGF_CPUS": wanted, "OMP_NUM_THREADS": wanted}, name


def test_where_this_machine_runs_them_tasks_have_its_threads(numbers, tmp_path):
    """Else a run here would have other sums than `dvc repro` beside it."""
    from kfp import compiler

    from pipelines.purification import build

    out = tmp_path / "here.yaml"
    compiler.Compiler().compile(build("signs", "badnets", numbers, "x", shared=False), str(out))
    spec = next(yaml.safe_load_all(out.read_text()))
    containers = [one["container"] for one in spec["deploymentSpec"]["executors"].values()]
    assert containers
    assert not any("env" in container for container in containers)


@pytest.mark.slow
def test_every_pair_compiles(numbers, tmp_path):
    for dataset in numbers["datasets"]:
        for attack in numbers["attacks"]:
            package = compile_pair(dataset, attack, {**numbers, "cluster": GPU}, tmp_path)
            assert next(yaml.safe_load_all(package.read_text()))["pipelineInfo"]["name"] == (
                f"ngf-{dataset}".replace("_", "-")
            )
    assert len(list(tmp_path.iterdir())) == len(numbers["datasets"]) * len(numbers["attacks"])


def test_every_task_is_tried_again_with_growing_pauses(numbers, on_gpus, tmp_path):
    tasks, _, _ = on_gpus
    for task in tasks.values():
        assert task["retryPolicy"] == {
            "maxRetryCount": 3,
            "backoffDuration": "10s",
            "backoffFactor": 3.0,
            "backoffMaxDuration": "300s",
        }
    never = {**GPU, "retries": {**GPU["retries"], "count": 0}}
    assert not any("retryPolicy" in task for task in compiled(numbers, never, tmp_path)[0].values())


def test_credentials_come_from_the_secrets_named_there_and_from_nowhere_else(
    numbers, on_gpus, tmp_path
):
    _, containers, kubernetes = on_gpus
    for name, node in kubernetes.items():
        assert {secret["secretName"] for secret in node["secretAsEnv"]} == {"records"}
        given = {
            (one["secretKey"], one["envVar"], secret.get("optional", False))
            for secret in node["secretAsEnv"]
            for one in secret["keyToEnv"]
        }
        assert given == {
            ("tracking-uri", "MLFLOW_TRACKING_URI", False),
            ("username", "MLFLOW_TRACKING_USERNAME", True),
            ("password", "MLFLOW_TRACKING_PASSWORD", True),
            ("token", "MLFLOW_TRACKING_TOKEN", True),
        }
        assert [one["secretName"] for one in node["imagePullSecret"]] == ["registry"]
        assert {one["name"] for one in containers[name]["env"]} == {"NGF_CPUS", "OMP_NUM_THREADS"}
    plain = compiled(numbers, {**GPU, "image_pull_secret": None}, tmp_path)[2]
    assert not any("imagePullSecret" in node for node in plain.values())


def test_what_changes_the_registry_and_what_ends_a_run_is_never_taken_from_the_cache(on_gpus):
    tasks, _, _ = on_gpus
    kept = {
        name
        for name, task in tasks.items()
        if task.get("cachingOptions", {}).get("enableCache", False)
    }
    assert kept == set(tasks) - {"promote", "report-status"}


def test_pairs_of_a_data_set_ask_kubeflow_for_the_same_splits_and_the_same_reference(
    numbers, tmp_path
):
    """What Kubeflow's cache looks at: the pipeline's name, image, command, environment, inputs."""

    def asked(attack):
        package = compile_pair("signs", attack, {**numbers, "cluster": GPU}, tmp_path)
        spec = next(yaml.safe_load_all(package.read_text()))
        shared = {}
        for name in ("prepare", "train-reference"):
            task = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"][name]
            given = [source["componentInputParameter"].removeprefix("pipelinechannel--")
                     for source in task["inputs"]["parameters"].values()
                     if "componentInputParameter" in source]  # fmt: skip
            values = {key: spec["root"]["inputDefinitions"]["parameters"][key] for key in given}
            container = spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
            shared[name] = (task["inputs"], values, container, spec["components"][f"comp-{name}"])
        return spec["pipelineInfo"]["name"], shared

    assert asked("badnets") == asked("benign")


def test_the_end_is_reported_whatever_happened(on_gpus):
    end = on_gpus[0]["report-status"]
    assert end["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert end["dependentTasks"] == ["exit-handler-1"]


def test_every_task_runs_in_the_image_that_is_named(numbers, tmp_path, monkeypatch):
    other = "registry.example.org/ngf-python:0.1.0-cpu-0123456789ab"
    monkeypatch.setenv("NGF_IMAGE", other)
    for section, image in ((GPU, GPU["image"]), ({**GPU, "image": None}, other)):
        containers = compiled(numbers, section, tmp_path)[1]
        assert {container["image"] for container in containers.values()} == {image}


def test_the_image_of_a_checkout_is_called_after_its_revision(monkeypatch):
    monkeypatch.delenv("NGF_IMAGE", raising=False)
    gpu = image_of(Cluster.of({**GPU, "image": None}))
    cpu = image_of(Cluster.of({**GPU, "image": None, "accelerator": None}))
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout[:12]
    assert gpu.removesuffix(DIRTY) == f"localhost/ngf-python:{ngf.__version__}-cuda-{head}"
    assert cpu.removesuffix(DIRTY) == f"localhost/ngf-python:{ngf.__version__}-cpu-{head}"
    said = subprocess.run(
        ["make", "-s", "-C", ROOT, "image-name", "TARGET=cpu"], capture_output=True, text=True
    )
    assert said.stdout.strip() == cpu, said.stderr


@pytest.mark.parametrize(
    "image",
    [
        "ngf-python",
        "r/ngf-python:latest",
        "r:5000/ngf-python:0.1.0",
        "r/ngf-python:20261201",
        "r/ngf-python:prod-0000000",
        "r/ngf-python:202612011530",
        "r/ngf-python:0.1.0-cpu-0123456",
        "r/ngf-python@sha256:0a0a",
    ],
)
def test_an_image_that_may_change_under_its_name_is_refused(image):
    with pytest.raises(InputError, match="may change under its name"):
        image_of(Cluster.of({**GPU, "image": image}))


@pytest.mark.parametrize(
    "name",
    ["@sha256:" + "0a" * 32, ":0.1.0-cuda-0123456789ab", ":" + "0a" * 20, ":main-" + "0a" * 20],
)
def test_an_image_that_is_pinned_is_taken(name):
    assert image_of(Cluster.of({**GPU, "image": f"r:5000/ngf-python{name}"})).endswith(name)


def test_raw_images_lie_in_an_empty_folder_a_claim_or_are_pulled_at_the_revision(numbers, tmp_path):
    def prepared(**raw):
        section = {**GPU, "raw": {"repository": None, "secret": None, "claim": None, **raw}}
        _, _, kubernetes = compiled(numbers, section, tmp_path)
        others = [node for name, node in kubernetes.items() if name != "prepare"]
        assert not any("pvcMount" in node for node in others)
        assert {one["secretName"] for node in others for one in node["secretAsEnv"]} == {"records"}
        spec = yaml.safe_load((tmp_path / "ngf-signs-badnets.yaml").read_text().split("\n---")[0])
        given = spec["root"]["inputDefinitions"]["parameters"]["raw"]["defaultValue"]
        return kubernetes["prepare"], given

    node, given = prepared()
    assert [one["mountPath"] for one in node["emptyDirMounts"]] == ["/work/data", "/tmp"]
    assert given == {}
    node, given = prepared(claim="images")
    assert [one["mountPath"] for one in node["emptyDirMounts"]] == ["/tmp"]
    (mount,) = node["pvcMount"]
    assert mount["mountPath"] == "/work/data"
    assert mount["pvcNameParameter"]["runtimeValue"]["constant"] == "images"
    node, given = prepared(repository="https://git.example.org/ngf", secret="keys")
    assert given["repository"] == "https://git.example.org/ngf"
    assert re.fullmatch("[0-9a-f]{40}", given["revision"])
    (secret,) = (one for one in node["secretAsEnv"] if one["secretName"] != "records")
    assert secret["secretName"] == "keys"
    assert {one["secretKey"]: one["envVar"] for one in secret["keyToEnv"]} == RAW_ENVIRONMENT


def test_without_a_secret_tasks_get_no_address_of_mlflow(numbers, tmp_path):
    kubernetes = compiled(numbers, {**GPU, "mlflow_secret": None}, tmp_path)[2]
    assert not any("secretAsEnv" in node for node in kubernetes.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpu": 1}, "cluster: unknown key 'gpu'"),
        ({"accelerators": 0}, "cluster.accelerators must be 1, got 0"),
        ({"accelerators": 2}, "cluster.accelerators must be 1, got 2: a task is one process"),
        ({"light": {**GPU["light"], "cpu": "two"}}, "cluster.light.cpu: 'two' is no number"),
        ({"light": {"cpu": "1"}}, "cluster.light: missing key 'memory'"),
        ({"node_selector": {"gpu": True}}, "cluster.node_selector.gpu: True is not str: quote it"),
        ({"tolerations": [{"operator": "In"}]}, "unknown toleration_operator 'In'"),
        ({"tolerations": [{"effect": "Never"}]}, "unknown toleration_effect 'Never'"),
        (
            {"raw": {"repository": "r", "secret": None, "claim": "c"}},
            "cluster.raw: give a repository or a claim, not both",
        ),
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
