"""`ngf repro --jobs`: DVC's own graph and lock file, several stages at a time."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ngf import repro
from ngf.errors import InputError

WAIT = 2  # seconds that a stage takes


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
    slow = f"date +%s.%N > s${{item}} && sleep {WAIT} && date +%s.%N >> s${{item}}"
    stages = {
        "root": {"cmd": "echo 1 >> times && cp times root", "outs": ["root"]},
        "slow": {
            "foreach": [0, 1, 2],
            "do": {"cmd": slow, "deps": ["root"], "outs": ["s${item}"]},
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


def spans(project):
    times = [[float(x) for x in (project / f"s{i}").read_text().split()] for i in range(3)]
    return [start for start, _ in times], [end for _, end in times]


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
    starts, ends = spans(project)
    assert max(starts) < min(ends)
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    assert lock.keys() == expected.keys()
    before = (project / "dvc.lock").read_text()
    again = repro.run(["joined"], 3, said.append)  # nothing is left to do
    assert set(again.values()) == {"done"}
    assert (project / "times").read_text() == "1\n"
    assert (project / "dvc.lock").read_text() == before
    assert "up to date" in dvc("status", "joined", "root", cwd=project).stdout


def test_it_is_safe_beside_a_dvc_that_runs(project):
    """Each stage runs once, by one of both, and the lock file holds all."""
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
