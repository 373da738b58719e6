"""One graph, two spellings: dvc.yaml and the Kubeflow DAG hold the same tasks, edges, numbers."""

import pytest
import yaml
from conftest import ROOT

from ngf import plugins, stages
from ngf.stages import Reads, Writes

PAIRS = [("signs", "badnets"), ("signs", "benign")]


def dvc_tasks(dataset, attack):
    """{task: (stage, inputs {path: argument}, names, params)} of one pair, from dvc.yaml."""
    import shlex

    from dvc.repo import Repo

    with Repo(".") as repo:
        found = {}
        for stage in repo.index.stages:
            words = shlex.split(stage.cmd)[1:]
            name, rest = words[0], words[1:]
            options = dict(zip((w.removeprefix("--") for w in rest[::2]), rest[1::2], strict=True))
            wanted = {f"prepare@{dataset}", f"reference@{dataset}"}
            if stage.name in wanted or f"@{dataset}-{attack}" in stage.name:
                found[stage.name] = (name, options, stage)
    return found


def dvc_graph(dataset, attack):
    """{task: {"edges": {argument: (task, argument)}, "names": ..., "sections": ...}}."""
    tasks = dvc_tasks(dataset, attack)
    marks = {name: stages.marks(name) for name, _, _ in tasks.values()}
    writer = {
        options[arg]: (task, arg)
        for task, (name, options, _) in tasks.items()
        for arg in options
        if isinstance(marks[name][arg], Writes)
    }
    graph = {}
    for task, (name, options, stage) in tasks.items():
        reads = {a: options[a] for a in options if isinstance(marks[name][a], Reads)}
        assert set(reads.values()) <= {str(dep) for dep in stage.deps}, f"{task}: undeclared input"
        outs = {options[a] for a in options if isinstance(marks[name][a], Writes)}
        assert outs == {str(out) for out in stage.outs}, f"{task}: other outputs than its command"
        sections = {key for dep in stage.deps for key in getattr(dep, "params", [])}
        graph[short(task, dataset, attack)] = {
            "edges": {
                a: (short(writer[p][0], dataset, attack), writer[p][1]) for a, p in reads.items()
            },
            "names": {a: options[a] for a in options if isinstance(marks[name][a], str)},
            "sections": sections,
        }
    return graph


def short(task, dataset, attack):
    """evaluate@signs-badnets-ngf -> evaluate ngf."""
    stage, _, cell = task.partition("@")
    rest = cell.removeprefix(dataset).removeprefix("-").removeprefix(attack).removeprefix("-")
    return f"{stage} {rest}".strip()


def kfp_graph(dataset, attack, numbers, tmp_path):
    """The same, from the compiled package."""
    from pipelines.compile import compile_pair

    package = compile_pair(dataset, attack, numbers, tmp_path)
    spec = next(yaml.safe_load_all(package.read_text()))
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    defaults = {
        f"pipelinechannel--{key}": value["defaultValue"]
        for key, value in spec["root"]["inputDefinitions"]["parameters"].items()
    }
    label = {key: task["taskInfo"]["name"] for key, task in tasks.items()}
    graph = {}
    for key, task in tasks.items():
        inputs = task.get("inputs", {})
        edges = (
            {arg: source["taskOutputArtifact"] for arg, source in inputs["artifacts"].items()}
            if "artifacts" in inputs
            else {}
        )
        given = {
            arg: defaults[source["componentInputParameter"]]
            if "componentInputParameter" in source
            else source["runtimeValue"]["constant"]
            for arg, source in inputs.get("parameters", {}).items()
        }
        graph[label[key]] = {
            "edges": {
                arg: (label[edge["producerTask"]], edge["outputArtifactKey"])
                for arg, edge in edges.items()
            },
            "names": {arg: value for arg, value in given.items() if isinstance(value, str)},
            "settings": {arg: value for arg, value in given.items() if isinstance(value, dict)},
        }
    return graph


STAGE = {"reference": "train", "victim": "train"}


@pytest.mark.parametrize(("dataset", "attack"), PAIRS)
def test_both_spellings_hold_the_same_graph(dataset, attack, numbers, tmp_path):
    from ngf import params

    dvc = dvc_graph(dataset, attack)
    kfp = kfp_graph(dataset, attack, numbers, tmp_path)
    assert sorted(kfp) == sorted(dvc)
    for task, node in dvc.items():
        twin = kfp[task]
        assert twin["edges"] == node["edges"], task
        assert twin["names"] == node["names"], task
        stage = STAGE.get(task.split()[0], task.split()[0])
        names = {**node["names"], "attack": attack, "dataset": dataset}
        wanted = stages.sections(stage, names)
        assert set(wanted.values()) == node["sections"], task
        for key, path in wanted.items():
            section = params.section(numbers, path, "params.yaml")
            # Kubeflow has no null: what is null for dvc is left out there.
            asked = {name: n for name, n in section.items() if n is not None}
            assert twin["settings"][key] == asked, task


@pytest.mark.parametrize(("dataset", "attack"), PAIRS)
def test_purify_sees_neither_attack_nor_trigger_nor_training_nor_test(
    dataset, attack, numbers, tmp_path
):
    graph = kfp_graph(dataset, attack, numbers, tmp_path)
    purify = [node for task, node in graph.items() if task.startswith("purify")]
    assert len(purify) == len(numbers["grid"]["defenses"])
    for node in purify:
        assert set(node["edges"].values()) == {("victim", "out"), ("prepare", "clean")}


def test_the_grid_names_plugins(numbers):
    for room in ("datasets", "attacks", "defenses"):
        assert set(numbers["grid"][room]) <= set(plugins.names(room))
    assert set(numbers["grid"]["promote"]) <= set(numbers["grid"]["defenses"])


def test_every_data_set_has_the_folder_that_prepare_watches():
    """DVC refuses a dependency that is missing, so git keeps a folder where nothing is tracked."""
    for name in plugins.names("datasets"):
        kept = ROOT / "data" / name / ".gitignore"
        assert kept.is_file(), f"data set '{name}' needs {kept}, which holds /raw"
        assert "/raw" in kept.read_text().split()


def test_compilation_is_byte_stable(tmp_path):
    """KFP's own order depends on the hash seed of the process."""
    import os
    import subprocess
    import sys

    contents = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        subprocess.run(
            [sys.executable, "-m", "pipelines.compile", "--out", str(out)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        contents.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3


# Messages, checks of numbers, where tensors live: a change there changes no result.
HOUSE = {"params", "progress", "device", "errors"}


LOOKS = ("looks", "exposure", "warps", "waves", "styles")
PARTS = [ROOT / "src/ngf" / f"{room}.py" for room in LOOKS]


@pytest.mark.parametrize(
    "file", [*sorted((ROOT / "src/ngf/defenses").glob("*.py")), *PARTS], ids=lambda f: f.stem
)
def test_purify_runs_again_when_what_a_defense_is_made_of_changes(file):
    """dvc.yaml names every room that a defense, or the search of `ngf`, imports from."""
    import ast

    text = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["purify"]["deps"]
    deps = {one.removeprefix("src/ngf/").removesuffix(".py") for one in text}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ngf":
            rooms = [node.module] if "." in node.module else [f"ngf.{a.name}" for a in node.names]
            used = {room.split(".")[1] for room in rooms} - HOUSE
            assert used - {"defenses", "datasets"} <= deps, f"{file.name}: {used}"
