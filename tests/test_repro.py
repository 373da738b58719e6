"""`ngf repro --jobs`: DVC's own graph and lock file, several stages at a time."""

import copy
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ngf import repro
from ngf.errors import InputError

PATIENCE = 120  # seconds that a stage waits for those that should run beside it
MEET = """
import os, pathlib, sys, time

here = pathlib.Path("here")
here.mkdir(exist_ok=True)
(here / sys.argv[1]).touch()
until = time.monotonic() + float(os.environ["PATIENCE"])
while len(list(here.iterdir())) < 3 and time.monotonic() < until:
    time.sleep(0.05)
met = len(list(here.iterdir())) == 3
pathlib.Path(f"s{sys.argv[1]}").write_text("met" if met else "alone")
"""


def sh(*command, cwd, check=True):
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(
        command, cwd=cwd, check=check, capture_output=True, text=True, env=environment
    )


def dvc(*arguments, cwd, check=True):
    return sh(sys.executable, "-m", "dvc", *arguments, cwd=cwd, check=check)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """root -> slow0, slow1, slow2 -> joined; broken -> after."""
    (tmp_path / "meet.py").write_text(MEET)
    monkeypatch.setenv("PATIENCE", str(PATIENCE))
    stages = {
        "root": {"cmd": "echo 1 >> times && cp times root", "outs": ["root"]},
        "slow": {
            "foreach": [0, 1, 2],
            "do": {
                "cmd": f"{sys.executable} meet.py ${{item}}",
                "deps": ["root"],
                "outs": ["s${item}"],
            },
        },
        "joined": {
            "cmd": "cat s0 s1 s2 > joined",
            "deps": ["s0", "s1", "s2"],
            "outs": ["joined"],
        },
        "broken": {"cmd": "echo no && false", "deps": ["root"], "outs": ["never"]},
        "after": {"cmd": "cp never after", "deps": ["never"], "outs": ["after"]},
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    sh("git", "init", "-q", cwd=tmp_path)
    dvc("init", "-q", cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def numbers(numbers) -> dict:
    """The project's own, to be changed."""
    return copy.deepcopy(numbers)


def write(project: Path, numbers: dict) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(numbers))


def test_the_graph_is_dvcs(project):
    found = repro.graph([])
    assert found["joined"] == {"root", "slow@0", "slow@1", "slow@2"}
    assert found["root"] == set()
    assert repro.graph(["slow@1"]).keys() == {"root", "slow@1"}
    assert repro.graph(["slow"]).keys() == {"root", "slow@0", "slow@1", "slow@2"}


def test_stages_run_side_by_side_and_a_failure_takes_those_after_it_alone(project):
    said = []
    found = repro.run([], 3, said.append)
    expected = dict.fromkeys(["root", "slow@0", "slow@1", "slow@2", "joined"], "done")
    assert found == {**expected, "broken": "failed", "after": "skipped"}
    assert sorted(said) == sorted(f"{stage}: {outcome}" for stage, outcome in found.items())
    assert [(project / f"s{item}").read_text() for item in range(3)] == ["met"] * 3
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    assert lock.keys() == expected.keys()
    before = (project / "dvc.lock").read_text()
    again = repro.run(["joined"], 3, said.append)  # nothing is left to do
    assert set(again.values()) == {"done"}
    assert (project / "times").read_text() == "1\n"
    assert (project / "dvc.lock").read_text() == before
    assert "up to date" in dvc("status", "joined", "root", cwd=project).stdout


def test_it_is_safe_beside_a_dvc_that_runs(project, monkeypatch):
    """Each stage runs once, by one of both, and the lock file holds all."""
    monkeypatch.setenv("PATIENCE", "2")
    theirs = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "-q", "joined"], cwd=project,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    time.sleep(1)
    found = repro.run(["joined"], 2, lambda _: None)
    output, _ = theirs.communicate(timeout=120)
    assert set(found.values()) == {"done"}, output
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    assert lock.keys() == found.keys()
    assert (project / "times").read_text() == "1\n"
    assert "up to date" in dvc("status", "joined", cwd=project).stdout


def test_an_unknown_stage_and_no_project_are_named(project, tmp_path_factory, monkeypatch):
    with pytest.raises(InputError, match="smoke"):
        repro.graph(["smoke"])
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    with pytest.raises(InputError, match="not inside of a DVC repository"):
        repro.graph([])


@pytest.mark.parametrize(
    ("room", "name", "said"),
    [
        ("datasets", "sings", "unknown data set 'sings': there is cifar10, folder"),
        ("attacks", "badnetz", "unknown attack 'badnetz': there is adaptive_blend, badnets"),
        ("defenses", "nfg", "unknown defense 'nfg': there is anp"),
        ("promote", "fp", "unknown grid.promote 'fp': there is none, ngf"),
    ],
)
def test_a_grid_that_names_what_does_not_exist_starts_nothing(project, numbers, room, name, said):
    """DVC alone would miss the file of that attack, and run the rest."""
    write(project, numbers)
    repro.check_grid()
    grid = {"datasets": ["signs"], "attacks": ["badnets"], "defenses": ["none", "ngf"]}
    write(project, {**numbers, "grid": grid | {room: [*grid.get(room, []), name]}})
    with pytest.raises(InputError, match=re.escape(said)):
        repro.run([], 1, lambda _: None)
    assert not (project / "dvc.lock").exists()
    (project / "params.yaml").write_text("other: {}\n")  # a project of somebody else's
    repro.check_grid()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("prepare.clean_share", 0.1, "prepare: unknown key 'clean_share': it takes clean_fraction"),
        ("datasets.signs.images", 10, "datasets.signs: unknown key 'images': it takes "),
        ("attacks.badnets.poison_rate", "most", "attacks.badnets.poison_rate: 'most' is not float"),
        ("train.signs.epoch", 3, "train.signs: unknown key 'epoch': it takes "),
        ("train.signs.model.breadth", 16, "train.signs.model: unknown key 'breadth': it takes "),
        ("purify.holdouts", 0.1, "purify: unknown key 'holdouts': it takes "),
        ("defenses.ngf.leest_gap", 0.1, "defenses.ngf: unknown key 'leest_gap': it takes weak"),
        ("evaluate.implanted_asr", 2, "implanted_asr must lie between 0 and 1, got 2"),
        ("inspect.probe", 2, "inspect: unknown key 'probe': it takes "),
        ("promote.max_asrs", 0.1, "promote: unknown key 'max_asrs': it takes "),
    ],
)
def test_a_number_that_a_stage_does_not_take_starts_nothing(
    project, numbers, tmp_path, path, value, said
):
    """Of each stage; alone it would end the cells only when what they need is trained."""
    from pipelines.compile import compile_pair

    *sections, key = path.split(".")
    here = numbers
    for section in sections:
        here = here[section]
    here[key] = value
    write(project, numbers)
    with pytest.raises(InputError, match=re.escape(said)):
        repro.run([], 1, lambda _: None)
    assert not (project / "dvc.lock").exists()
    with pytest.raises(InputError, match=re.escape(said)):
        compile_pair("signs", "badnets", numbers, tmp_path / "packages")
    assert not (tmp_path / "packages").exists()


def test_numbers_of_what_is_not_active_may_wait(project, numbers):
    numbers["defenses"]["anp"]["no such key"] = 1
    write(project, numbers)
    repro.check_grid()


def test_a_section_that_is_missing_is_named(project, numbers):
    del numbers["train"]["signs"]
    write(project, numbers)
    with pytest.raises(InputError, match=r"params.yaml has no section 'train.signs': train holds"):
        repro.check_grid()
