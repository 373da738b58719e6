"""One graph, two spellings: dvc.yaml and the Kubeflow DAG hold the same tasks, edges, numbers."""

import pytest
import yaml
from conftest import ROOT
from imports import HOUSE, closure

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


def test_what_is_null_is_left_out_wherever_it_stands(numbers, tmp_path):
    import copy

    changed = copy.deepcopy(numbers)
    changed["train"]["signs"]["start"] = None
    changed["train"]["signs"]["model"]["small_stem"] = None
    changed["attacks"]["badnets"]["release"] = None
    changed["defenses"]["ngf"]["chunk"] = None
    found = kfp_graph("signs", "badnets", changed, tmp_path)
    assert found == kfp_graph("signs", "badnets", numbers, tmp_path)


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


@pytest.mark.slow
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


TASKS = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# The room of which a task loads a plug-in by name; an inspection triggers images, too.
PLUGINS = {
    "prepare": "datasets", "poison": "attacks", "victim": "attacks", "purify": "defenses",
    "evaluate": "attacks", "inspect": "attacks",
}  # fmt: skip
CELLS = [
    (task, name)
    for task in TASKS
    for name in (plugins.names(PLUGINS[task]) if task in PLUGINS else [""])
]
# `train` imports for both; what attackers do has no part in a clean reference.
OF_VICTIMS = {"attacks", "norms"}


def sources(task, name):
    """The sources that dvc.yaml names for a task, in the cell of a plug-in."""
    deps = TASKS[task].get("do", TASKS[task])["deps"]
    for word in ("${item.attack}", "${item.defense}"):
        deps = [dep.replace(word, name) for dep in deps]
    return {ROOT / dep for dep in deps if dep.startswith("src/")}


def plugin(task, name):
    return ROOT / f"src/ngf/{PLUGINS[task]}/{name}.py"


def runs(task, name):
    """The files that a task runs: its stage, the plug-in of its cell, and what they import."""
    start = "report/__init__" if task == "report" else f"stages/{STAGE.get(task, task)}"
    house = {"promote": HOUSE - {"lineage"}, "reference": HOUSE | OF_VICTIMS}.get(task, HOUSE)
    starts = [ROOT / f"src/ngf/{start}.py", *([plugin(task, name)] if name else [])]
    return closure(starts, frozenset(house))


def test_imports_in_functions_count_and_those_for_a_type_checker_do_not():
    """A trojan trains a network to read; prepare names attacks in annotations alone."""
    found = {str(file.relative_to(ROOT / "src/ngf")) for file in runs("poison", "trojan_one")}
    assert {"training.py", "models/resnet.py", "hooks.py", "attacks/_surrogate.py"} <= found
    assert not {"attacks/badnets.py", "cli.py"} & found
    assert ROOT / "src/ngf/attacks/__init__.py" not in runs("prepare", "signs")


@pytest.mark.parametrize(("task", "name"), CELLS)
def test_a_task_runs_again_when_what_it_is_made_of_changes(task, name):
    """dvc.yaml names every file that it runs, or a folder around it."""
    named = sources(task, name)
    lacking = [file for file in runs(task, name) if not named & {file, *file.parents}]
    assert not lacking


@pytest.mark.parametrize("task", TASKS)
def test_a_task_does_not_run_again_for_what_no_cell_of_it_needs(task):
    """Nor for another cell's plug-in, unless a plug-in of its own imports that."""
    needed, named = set(), set()
    for _, name in (cell for cell in CELLS if cell[0] == task):
        own = {plugin(task, name)} if name else set()
        needed |= runs(task, name) - own
        named |= sources(task, name) - own
    assert not [dep for dep in named if all(dep not in (file, *file.parents) for file in needed)]
    if PLUGINS.get(task) != "datasets":  # few, and all read in one go
        assert not named & {ROOT / "src/ngf" / room for room in ("attacks", "defenses")}
