"""The real thing, small: `dvc repro` in a copy of the checkout, beside KFP's local runner."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from small_grid import BIN, CELL, checkout, edit, run, shrink

from ngf import store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """Such a repository with a tiny grid, and that grid run once."""
    folder = tmp_path_factory.mktemp("clone")
    checkout(folder)
    edit(folder / "params.yaml", shrink)
    run("dvc", "repro", cwd=folder)
    return folder


def metrics_of(folder: Path) -> dict[str, bytes]:
    files = folder.glob("runs/*/*/*/evaluation/metrics.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def would_run(folder: Path) -> set[str]:
    said = run("dvc", "repro", "--dry", cwd=folder).stdout
    lines = [line for line in said.splitlines() if line.startswith("Running stage")]
    return {line.split("'")[1].partition("@")[0] + line.split("'")[1][-4:] for line in lines}


def test_the_grid_leaves_metrics_and_a_decision_for_every_cell(clone):
    assert sorted(metrics_of(clone)) == [
        f"{CELL}/{defense}/evaluation/metrics.json" for defense in ("ngf", "none")
    ]
    decision = store.read_json(clone / CELL / "ngf" / "promotion.json")
    assert decision["model"] == "ngf-signs-badnets"
    assert decision["version"] == 1
    # Two epochs implant nothing: that is not a success of the defense.
    assert decision["passed"] is False
    assert "the attack did not take" in decision["reasons"][0]
    table = run("ngf", "table", cwd=clone).stdout
    assert table.count("VICTIM FAILED: the attack did not take") == 2


def test_mlflow_holds_the_tree_and_the_registered_model_works(clone):
    code = """
import mlflow, torch
mlflow.set_tracking_uri("sqlite:///mlflow.db")
client = mlflow.MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("ngf").experiment_id])
stage = {run.info.run_id: run.data.tags["ngf.stage"] for run in runs}
parent = {run.info.run_id: stage.get(run.data.tags.get("mlflow.parentRunId")) for run in runs}
parents = {(stage[run_id], parent[run_id]) for run_id in stage}
assert parents == {("prepare", None), ("train", "prepare"), ("poison", "prepare"),
                   ("train", "poison"), ("purify", "train"), ("evaluate", "purify"),
                   ("inspect", "purify"), ("promote", "evaluate"), ("report", None)}, parents
assert {run.info.status for run in runs} == {"FINISHED"}
attached = {
    stage[run_id]: {one.path for at in ("", "out") for one in client.list_artifacts(run_id, at)}
    for run_id in stage
}
assert {"out/page.html", "out/page.md", "out/triggered.png"} <= attached["evaluate"], attached
assert {"out/page.html", "out/page.md", "out/curvature.json"} <= attached["inspect"], attached
assert {"index.html", "table.md", "cells.json"} <= attached["report"], attached
version = client.get_model_version("ngf-signs-badnets", "1")
assert version.tags["ngf.reason"].startswith("nothing was there to purify"), version.tags
assert not client.get_registered_model("ngf-signs-badnets").aliases
model = mlflow.pytorch.load_model("models:/ngf-signs-badnets/1")
assert model(torch.rand(5, 3, 32, 32)).shape == (5, 16)
"""
    run(sys.executable, "-c", code, cwd=clone)


def test_the_grid_ends_with_a_page_and_plots(clone):
    page = (clone / "report" / "index.html").read_text()
    assert "VICTIM FAILED: the attack did not take" in page
    for chart in ("Along purification", "Feature map after", "Loss surface before", "Spectral"):
        assert f'aria-label="{chart}' in page
    shown = json.loads(run("dvc", "plots", "show", "--json", cwd=clone).stdout)
    assert "errors" not in shown
    assert {Path(name).parent.name for name in shown["data"]} == {
        "along", "confusion", "movement", "density",
    }  # fmt: skip


def test_a_second_run_does_nothing(clone):
    assert would_run(clone) == set()


@pytest.mark.parametrize(
    ("path", "value", "cells"),
    [
        # What follows runs only if its input changed, which DVC cannot know beforehand.
        ("defenses.ngf.lr", 0.2, {"purify-ngf"}),
        ("promote.max_acc_drop", 0.5, {"promote-ngf"}),
        ("defenses.finetune.lr", 0.5, set()),
        ("attacks.blend.alpha", 0.5, set()),
    ],
)
def test_a_changed_number_reruns_the_cells_that_read_it_and_no_others(clone, path, value, cells):
    file = clone / "params.yaml"
    kept = file.read_text()
    section, plugin, *rest = path.split(".")

    def change(content):
        place = content[section][plugin] if rest else content[section]
        place[rest[0] if rest else plugin] = value

    try:
        edit(file, change)
        assert would_run(clone) == cells
    finally:
        file.write_text(kept)


def test_kubeflow_gives_the_same_metrics_byte_for_byte(clone):
    done = run(sys.executable, "-m", "pipelines.local", cwd=clone, NGF_LINEAGE="on")
    assert done.stdout.count("metrics.json equals runs/signs/badnets/") == 2


def test_a_failing_task_fails_the_kubeflow_run(clone):
    kept = (clone / "params.yaml").read_text()
    try:
        edit(clone / "params.yaml", lambda c: c["attacks"]["badnets"].update(target=99))
        done = run(sys.executable, "-m", "pipelines.local", cwd=clone, check=False)
    finally:
        (clone / "params.yaml").write_text(kept)
    assert done.returncode == 1
    assert "target must lie between 0 and 15, got 99" in done.stdout + done.stderr


def test_a_killed_stage_is_repeated_from_a_clean_state(clone):
    before = metrics_of(clone)
    victim = clone / CELL / "victim"
    store.remove(victim)
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": f"{clone}/src"}
    command = [str(BIN / "dvc"), "repro", "--force", "--single-item", "victim@signs-badnets"]
    process = subprocess.Popen(command, cwd=clone, env=env, stdout=subprocess.DEVNULL)
    os.kill(find(process.pid, "ngf train"), signal.SIGKILL)
    assert process.wait() != 0
    assert not victim.exists()
    run("dvc", "repro", cwd=clone)
    assert victim.is_dir()
    assert metrics_of(clone) == before
    assert not list(clone.glob("runs/**/.*.partial"))


def find(parent: int, wanted: str, patience_s: float = 30) -> int:
    """The process below `parent` whose command line holds `wanted`, once it works for a second."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        for child in psutil.Process(parent).children(recursive=True):
            line = " ".join(child.cmdline())
            if wanted.replace(" ", "/ngf ") in line or f"bin/{wanted}" in line:
                time.sleep(1)
                return child.pid
        time.sleep(0.05)
    raise AssertionError(f"no process '{wanted}' below {parent}")


def test_raw_images_that_dvc_tracks_are_prepared_anew_when_they_change(tmp_path):
    """`dvc add`, then other images in its place: `dvc repro` sees that by itself."""

    def settings(content):
        content["grid"]["datasets"] = ["folder"]
        content["prepare"]["clean_fraction"] = 0.2
        content["datasets"]["folder"] |= {"root": "data/folder/raw", "image_size": 8}

    checkout(tmp_path)
    edit(tmp_path / "params.yaml", settings)
    raw = tmp_path / "data" / "folder" / "raw"
    for label, name in enumerate(("a", "b")):
        (raw / name).mkdir(parents=True)
        for index in range(10):
            image = Image.new("RGB", (8, 8), (20 * index, 100 * label, 0))
            image.save(raw / name / f"{index}.png")
    run("dvc", "add", raw, cwd=tmp_path)

    def prepared() -> tuple[bool, bytes]:
        said = run("dvc", "repro", "prepare@folder", cwd=tmp_path, NGF_LINEAGE="off").stdout
        images = (tmp_path / "runs" / "folder" / "train" / "x.npy").read_bytes()
        return "Running stage 'prepare@folder'" in said, images

    ran, before = prepared()
    assert ran
    assert prepared() == (False, before)
    for index in range(10):
        Image.new("RGB", (8, 8), (20 * index, 100, 255)).save(raw / "b" / f"{index}.png")
    ran, after = prepared()
    assert ran
    assert after != before
