"""The command: what a person sees. Bad input is one line and exit code 2, and leaves nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from command import in_a_process, ngf
from conftest import ROOT, colour_split, tiny_model

from ngf import plugins, stages, store
from ngf.attacks import Trigger


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with params.yaml, splits, a victim and a trigger."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["datasets"]["signs"].update(train_images=64, test_images=32)
    content["train"]["colours"] = {**content["train"]["signs"], "epochs": 1}
    content["train"]["colours"]["model"] = {"depth": 18, "width": 4, "stem_stride": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    for seed, name in enumerate(("train", "clean", "test")):
        store.save_split(tmp_path / name, colour_split(24, seed))
    store.save_model(tmp_path / "victim", tiny_model())
    store.save_trigger(tmp_path / "trigger", Trigger("benign"))
    return tmp_path


PURIFY = ("purify", "--model", "victim", "--clean", "clean", "--out", "out", "--report", "r.json")
PREPARE = ("prepare", "--train", "a", "--clean", "b", "--test", "c")
EVALUATE = ("evaluate", "--model", "victim", "--victim", "victim", "--reference", "victim")
EVALUATE += ("--trigger", "trigger")


def change(workspace: Path, **sections) -> None:
    file = workspace / "params.yaml"
    content = yaml.safe_load(file.read_text())
    for path, value in sections.items():
        *outer, last = path.split("__")
        place = content
        for key in outer:
            place = place[key]
        place[last] = value
    file.write_text(yaml.safe_dump(content))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def lacking_class(folder: Path) -> None:
    split = colour_split(24, 0)
    split.y_N[split.y_N == 2] = 0
    store.remove(folder)
    store.save_split(folder, split)


def other_classes(folder: Path) -> None:
    card = store.read_json(folder / "card.json")
    store.write_json(folder / "card.json", {**card, "classes": [*card["classes"], "fourth"]})


DEFENSES = ", ".join(plugins.names("defenses"))
BAD = {
    "unknown data set": (
        (*PREPARE, "--dataset", "sings"),
        None,
        "datasets holds cifar10, folder, gtsrb, imagenet, signs, tiny_imagenet",
    ),
    "unknown attack": (
        ("poison", "--train", "train", "--attack", "bladnets", "--out", "out"),
        None,
        "attacks holds adaptive_blend, badnets, benign, blend",
    ),
    "unknown defense": (
        (*PURIFY, "--defense", "nfg"),
        None,
        f"defenses holds {DEFENSES}",
    ),
    "section without plug-in": (
        (*PURIFY, "--defense", "magic"),
        lambda w: change(w, defenses__magic={}),
        f"unknown defense 'magic': there is {DEFENSES}",
    ),
    "holdout out of reach": (
        (*PURIFY, "--defense", "none"),
        lambda w: change(w, purify__holdout=0.7),
        "holdout must lie between 0 and 0.5, got 0.7",
    ),
    "diverged": (
        (*PURIFY, "--defense", "finetune"),
        lambda w: change(w, defenses__finetune__lr=1e30, defenses__finetune__epochs=3),
        "defense 'finetune' diverged: net.",
    ),
    "unknown key": (
        (*PURIFY, "--defense", "finetune"),
        lambda w: change(w, defenses__finetune__epoch=3),
        "unknown key 'epoch': it takes epochs, batch_size, lr",
    ),
    "value of another kind": (
        (*PURIFY, "--defense", "finetune"),
        lambda w: change(w, defenses__finetune__lr="fast"),
        "defenses.finetune.lr: 'fast' is not float",
    ),
    "report without results": (("report",), None, "no results under runs: run `make run`"),
    "report of missing rows": (("report", "--rows", "no.json"), None, "no file no.json"),
    "benchmark of an unknown defense": (
        ("bench", "--defenses", "none,nfg"),
        None,
        "'nfg'",
    ),
    "benchmark of an unknown attack": (
        ("bench", "--attacks", "bladnets"),
        None,
        "unknown attack 'bladnets': there is ",
    ),
    "benchmark of an unknown data set": (
        ("bench", "--dataset", "sings"),
        None,
        "unknown data set 'sings': there is cifar10, folder",
    ),
    "benchmark of no seed": (
        ("bench", "--seeds", "one"),
        None,
        "--seeds must be numbers with commas between, got 'one'",
    ),
    "benchmark of nothing": (("bench", "--attacks", ","), None, "--attacks is empty"),
    "benchmark that was not run": (("bench", "--dry-run"), None, "no cell is there below"),
    "benchmark by nobody": (("bench", "--jobs", "0"), None, "jobs must be"),
    "grid by nobody": (("repro", "--jobs", "0"), None, "jobs must be"),
    "grid where there is none": (("repro",), None, "not inside of a DVC repository"),
    "grid of an unknown attack": (
        ("repro", "--check"),
        lambda w: (w / "params.yaml").write_text("grid: {attacks: [badnetz]}"),
        "unknown attack 'badnetz': there is ",
    ),
    "grid with an unknown key": (
        ("repro", "--check"),
        lambda w: change(w, defenses__ngf__leest_gap=0.1),
        "defenses.ngf: unknown key 'leest_gap': it takes weak, ",
    ),
    "parameters missing": (
        (*PURIFY, "--defense", "none"),
        lambda w: (w / "params.yaml").unlink(),
        "cannot read parameters from params.yaml",
    ),
    "parameters truncated": (
        (*PURIFY, "--defense", "none"),
        lambda w: (w / "params.yaml").write_text("grid: [a"),
        "params.yaml is not valid YAML",
    ),
    "missing model": (
        (*PURIFY, "--defense", "none"),
        lambda w: store.remove(w / "victim"),
        "no model at victim: give a file",
    ),
    "truncated weights": (
        (*PURIFY, "--defense", "none"),
        lambda w: cut(w / "victim" / "weights.safetensors"),
        "is not a safetensors checkpoint",
    ),
    "not a checkpoint": (
        (*PURIFY, "--defense", "none"),
        lambda w: (w / "victim" / "weights.safetensors").write_text("hello"),
        "is not a safetensors checkpoint",
    ),
    "truncated images": (
        (*PURIFY, "--defense", "none"),
        lambda w: cut(w / "clean" / "x.npy"),
        "x.npy is damaged",
    ),
    "wrong number of classes to purify": (
        (*PURIFY, "--defense", "none"),
        lambda w: other_classes(w / "clean"),
        "the model knows 3 classes and the clean split 4",
    ),
    "wrong number of classes to evaluate": (
        (*EVALUATE, "--test", "test", "--out", "out"),
        lambda w: other_classes(w / "test"),
        "victim knows 3 classes, the test split 4",
    ),
    "clean split lacks a class": (
        (*PURIFY, "--defense", "none"),
        lambda w: lacking_class(w / "clean"),
        "the clean split has no image of class channel2",
    ),
    "clean fraction too small": (
        (*PREPARE, "--dataset", "signs"),
        lambda w: change(w, prepare__clean_fraction=0.001),
        "choose one from 0.25 to 0.75",
    ),
    "poison rate out of reach": (
        ("poison", "--train", "train", "--attack", "badnets", "--out", "out"),
        lambda w: change(w, attacks__badnets__poison_rate=0.9),
        "between 0.042 and 0.67 of the 24 training images, got 0.9",
    ),
    "victim without trigger": (
        ("train", "--dataset", "colours", "--train", "train", "--poison", "train", "--out", "out"),
        None,
        "--poison and --trigger go together",
    ),
    "no epochs": (
        ("train", "--dataset", "colours", "--train", "train", "--out", "out"),
        lambda w: change(w, train__colours__epochs=0),
        "epochs must be at least 1, got 0",
    ),
    "empty batches": (
        (*PURIFY, "--defense", "ngf"),
        lambda w: change(w, defenses__ngf__batch_size=0),
        "batch_size must be at least 1, got 0",
    ),
    "negative seed": (
        ("poison", "--train", "train", "--attack", "blend", "--out", "out"),
        lambda w: change(w, attacks__blend__seed=-1),
        "attacks.blend.seed must lie between 0 and 9.22337e+18, got -1",
    ),
    "unknown depth": (
        ("train", "--dataset", "colours", "--train", "train", "--out", "out"),
        lambda w: change(w, train__colours__model__depth=19),
        "unknown depth 19: there is 18, 34",
    ),
    "step too long": (
        (*PURIFY, "--defense", "ngf"),
        lambda w: change(w, defenses__ngf__lr=3.0),
        "lr must lie between 0 and 1, got 3",
    ),
    "section that is no section": (
        (*PURIFY, "--defense", "ngf"),
        lambda w: change(w, defenses__ngf=5),
        "must hold settings, not 5",
    ),
    "another data set's split": (
        ("train", "--dataset", "signs", "--train", "train", "--out", "out"),
        None,
        "train holds the data set 'colours', not 'signs'",
    ),
    "output over the working directory": (
        (*PURIFY[:-3], ".", "--report", "r.json", "--defense", "none"),
        None,
        "--out . would replace the working directory",
    ),
    "output over a stranger's folder": (
        (*PURIFY[:-3], "mine", "--report", "r.json", "--defense", "none"),
        lambda w: ((w / "mine").mkdir(), (w / "mine" / "thesis.txt").write_text("x")),
        "--out mine is a folder of something else: it holds thesis.txt, which was not written here",
    ),
    "output inside another": (
        ("prepare", "--dataset", "signs", "--train", "a", "--clean", "a/b", "--test", "c"),
        None,
        "--clean a/b lies in --train a",
    ),
    "no results": (("table",), None, "no results under runs"),
}


@pytest.mark.parametrize(
    ("case", "run"), [*((case, ngf) for case in BAD), ("diverged", in_a_process)]
)
def test_bad_input_is_one_line_and_leaves_nothing(case, run, workspace):
    words, damage, said = BAD[case]
    if damage:
        damage(workspace)
    before = sorted(workspace.rglob("*"))
    done = run(*words, cwd=workspace)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    assert sorted(workspace.rglob("*")) == before


def test_stages_run_by_hand(workspace):
    train = "train --dataset colours --train train --out"
    for line in (
        "poison --train train --attack badnets --out poison",
        f"{train} reference",
        f"{train} victim2 --poison poison --trigger trigger2",
        "purify --model victim2 --clean clean --defense none --out purified --report report.json",
    ):
        done = ngf(*line.split(), cwd=workspace)
        assert done.returncode == 0, done.stderr
    line = "--model purified --victim victim2 --reference reference --trigger trigger2 --test test"
    done = ngf("evaluate", *line.split(), "--out", "evaluation", "--json", cwd=workspace)
    said = json.loads(done.stdout)
    assert said["attack"] == "badnets"
    metrics = store.read_json(workspace / "evaluation" / "metrics.json")
    assert metrics["model"]["acc"]["value"] == said["metrics"]["model_acc"]
    assert "the attack did not take" in metrics["victim_failed"]
    assert "VICTIM FAILED" in said["message"]
    assert (workspace / "evaluation" / "triggered.png").stat().st_size > 0


@pytest.mark.parametrize("name", stages.NAMES)
def test_every_stage_is_a_command_with_help_for_every_option(name, workspace):
    done = ngf(name, "--help", cwd=workspace)
    assert done.returncode == 0
    for arg, mark in stages.marks(name).items():
        text = mark if isinstance(mark, str) else mark.help
        assert f"--{arg}" in done.stdout
        assert text[:30] in done.stdout


def test_help_answers_without_heavy_imports(workspace):
    code = (
        "import sys; sys.argv = ['ngf', '--help']\n"
        "from ngf.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'kfp', 'dvc', 'torchvision', 'pandas'}\n"
        "heavy |= {'matplotlib', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Purify" in done.stdout
    assert done.stderr.strip() == "[]", "`ngf --help` must not import these"
    assert time.perf_counter() - started < 5


def test_the_core_needs_torch_and_numpy_alone():
    """Every module that computes imports without the pipeline's packages."""
    code = (
        "import sys, importlib\n"
        "blocked = ['mlflow', 'kfp', 'kubernetes', 'dvc', 'torchvision', 'typer', 'rich',\n"
        "           'yaml', 'safetensors', 'PIL']\n"
        "for name in blocked: sys.modules[name] = None\n"
        "from ngf import plugins, metrics, training, norms, split, store, gate, params, stages\n"
        "import ngf.fisher.natural\n"
        "for room in plugins.ROOMS:\n"
        "    for name in plugins.names(room): plugins.load(room, name)\n"
        "for name in stages.NAMES: stages.function(name)\n"
        "print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr
