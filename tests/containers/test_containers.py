"""The image, built and run by a real engine, and one pair through KFP's DockerRunner in it."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from podman import Engine, lacking, run_docker_container
from servers import mlflow_server
from small_grid import CELL, checkout, edit, run, shrink
from test_raw import tracked

import ngf
from ngf import params

pytestmark = [
    pytest.mark.containers,
    pytest.mark.slow,
    pytest.mark.skipif(lacking() is not None, reason=str(lacking())),
]
BASE = "localhost/ngf-base:bookworm"
IMAGE = f"localhost/ngf-python:{ngf.__version__}-cpu-tests"
REVISION = "0123456789ab"
# What chooses the kernels of linear algebra must be chosen alike on both sides.
KERNELS = {"OMP_NUM_THREADS": "1"} | {
    key: value
    for key, value in os.environ.items()
    if key.startswith(("OPENBLAS_", "ONEDNN_", "MKL_", "NPY_"))
}
# As a cluster that trusts nobody: a user without a name, no right, nothing to write but /tmp.
LOCKED = (
    "--user=54321:54321", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges",
    "--network=none", "--env=NGF_LINEAGE=off",
)  # fmt: skip


@pytest.fixture(scope="session")
def engine():
    """Its storage is kept in build/, so that the next call finds the layers that did not change."""
    engine = Engine(Path(os.environ.get("NGF_CONTAINERS", ROOT / "build" / "containers")))
    engine.base(BASE)
    return engine


@pytest.fixture(scope="session")
def image(engine):
    given = {"BASE": BASE, "VERSION": ngf.__version__, "REVISION": REVISION}
    engine.build(IMAGE, ROOT / "docker" / "Dockerfile", ROOT, "cpu", **given)
    return IMAGE


def test_labels_say_version_and_revision_and_nobody_is_root(engine, image):
    (found,) = json.loads(engine("podman", "image", "inspect", image).stdout)
    labels = {key.rpartition(".")[2]: value for key, value in found["Labels"].items()}
    assert labels["version"] == ngf.__version__
    assert labels["revision"] == REVISION
    assert f"NGF_REVISION={REVISION}" in found["Config"]["Env"]  # what the lineage says
    assert found["Config"]["User"] == "1000"


def test_the_image_is_small_but_for_torch(engine, image):
    (found,) = json.loads(engine("podman", "image", "inspect", image).stdout)
    code = (
        "import pathlib, torch; "
        "print(sum(f.lstat().st_size for f in pathlib.Path(torch.__file__).parent.rglob('*')))"
    )
    torch = int(engine("podman", "run", "--rm", image, "python", "-c", code).stdout)
    size = (found["Size"] - torch) / 1e9
    print(f"{found['Size'] / 1e9:.2f} GB, of which torch {torch / 1e9:.2f}")
    assert size < 1.2


def test_a_stage_runs_as_anybody_with_nothing_to_write_and_no_network(engine, image, tmp_path):
    numbers = params.read(ROOT / "params.yaml")
    shrink(numbers)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    (tmp_path / "params.yaml").write_text(json.dumps(numbers))
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    out = [f"--{name}=/out/{name}" for name in ("train", "clean", "test")]
    volumes = [f"--volume={tmp_path}/out:/out", f"--volume={tmp_path}/params.yaml:/p.yaml:ro"]
    command = ["ngf", "prepare", "--dataset=signs", "--params=/p.yaml", *out]
    done = engine("podman", "run", "--rm", *LOCKED, *volumes, image, *command)
    assert "16 classes; 576 train, 64 clean, 64 test" in done.stdout
    owners = {path.stat().st_uid for path in (tmp_path / "out").iterdir()}
    assert owners == {54321}
    written = ["sh", "-c", "touch /work/here"]
    refused = engine("podman", "run", "--rm", *LOCKED, image, *written, check=False)
    assert "Read-only file system" in refused.stderr


def test_what_a_task_needs_is_in_the_image(engine, image):
    code = "from ngf.vision import load_torchvision; load_torchvision(); "
    code += "import kfp.dsl.executor_main, dvc_s3, boto3, timm, ngf.stages, pipelines"
    engine("podman", "run", "--rm", *LOCKED, image, "python", "-c", code)
    tools = engine("podman", "run", "--rm", *LOCKED, image, "python", "-m", "pip", "list").stdout
    assert "pytest" not in tools


def test_raw_images_are_pulled_by_a_nameless_user_with_nothing_to_write(engine, image, tmp_path):
    """Into the one folder that a volume makes writable, as `prepare` has it on a cluster."""
    revision, _ = tracked(tmp_path / "repository", tmp_path / "remote")
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)
    engine("chown", "-R", "54321", tmp_path / "repository")  # git distrusts what others own
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)
    code = f"from ngf.raw import pull; pull('{tmp_path}/repository', '{revision}', 'data/mine/raw')"
    volumes = [
        f"--volume={tmp_path}/{name}:{tmp_path}/{name}:ro" for name in ("repository", "remote")
    ]
    volumes.append(f"--volume={tmp_path}/data:/work/data")
    engine("podman", "run", "--rm", *LOCKED, *volumes, image, "python", "-c", code)
    assert (tmp_path / "data" / "mine" / "raw" / "a" / "1.png").read_text() == "first"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A small grid that `dvc repro` has run, with the kernels that the containers have."""
    folder = tmp_path_factory.mktemp("clone")
    checkout(folder)
    edit(folder / "params.yaml", shrink)
    run("dvc", "repro", cwd=folder, **KERNELS)
    return folder


def docker_run(engine, image, folder, root, tracking):
    """One pair by KFP's DockerRunner, in a process of its own: KFP changes the one it runs in."""
    script = f"""
import os, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
import podman
from kfp import local
from kfp.local import docker_task_handler
from ngf import params
from pipelines.local import run_pair
docker_task_handler.run_docker_container = podman.run_docker_container
os.umask(0)  # the container's user writes below folders that KFP makes here
runner = local.DockerRunner(
    environment={{"MLFLOW_TRACKING_URI": {tracking!r}, **{KERNELS!r}}},
    user="54321:54321", read_only=True, tmpfs={{"/tmp": "mode=1777"}}, network_mode="host",
    cap_drop=["ALL"],
)
found = run_pair("signs", "badnets", params.read(Path("params.yaml")), Path({str(root)!r}),
                 runner, {image!r})
for defense, content in found.items():
    Path(f"{{defense}}.docker.json").write_bytes(content)
"""
    with engine.socket() as address:
        return subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder,
            env={**os.environ, "DOCKER_HOST": address, "TMPDIR": str(engine.folder)},
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    database = f"--backend-store-uri=sqlite:///{folder}/mlflow.db"
    with mlflow_server(folder, database, f"--artifacts-destination={folder}/artifacts") as address:
        yield address


@pytest.fixture
def root(engine):
    """Where KFP keeps artifacts: a path that host and container share, open to any user."""
    folder = engine.folder / "pipeline-root"
    yield folder
    engine("rm", "-rf", folder)


def test_the_docker_runner_gives_dvcs_metrics(engine, image, clone, root, tracking):
    done = docker_run(engine, image, clone, root, tracking)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    for defense in ("none", "ngf"):
        expected = (clone / CELL / defense / "evaluation" / "metrics.json").read_bytes()
        assert (clone / f"{defense}.docker.json").read_bytes() == expected
    summaries = [file.read_text() for file in root.rglob("summary")]
    assert any("| **ACC** |" in text for text in summaries)
    import mlflow

    client = mlflow.MlflowClient(tracking, tracking)
    (version,) = client.search_model_versions("name = 'ngf-signs-badnets'")
    assert version.tags["ngf.reason"].startswith("nothing was there to purify")


def test_a_task_that_fails_in_its_container_fails_the_run(engine, image, clone, root, tracking):
    kept = (clone / "params.yaml").read_text()
    try:
        edit(clone / "params.yaml", lambda c: c["attacks"]["badnets"].update(target=99))
        done = docker_run(engine, image, clone, root, tracking)
    finally:
        (clone / "params.yaml").write_text(kept)
    assert done.returncode == 1
    assert "target must lie between 0 and 15, got 99" in done.stdout
    assert "finished with status" in done.stderr


def test_the_exit_code_of_a_container_is_its_own(engine, image):
    import docker

    with engine.socket() as address, contextlib.closing(docker.DockerClient(address)) as client:
        for code in (0, 3):
            with contextlib.redirect_stdout(io.StringIO()) as said:
                command = ["sh", "-c", f"echo here; exit {code}"]
                assert run_docker_container(client, image, command, {}) == code
            assert said.getvalue() == "here\n"
