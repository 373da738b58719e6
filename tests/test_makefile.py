"""`make image-push` says what was pushed, by programs that stand in for docker and podman."""

import subprocess

import pytest
from conftest import ROOT

PUSHED, OTHER = "sha256:" + "0a" * 32, "sha256:" + "0b" * 32
DOCKER = """#!/bin/sh
case "$1" in
push) echo "0.1.0: digest: {digest} size: 1234" ;;
inspect) echo "r/ngf-python@{other}" ;;
esac
"""
PODMAN = """#!/bin/sh
case "$1" in
push) [ "$2" = --digestfile ] && printf %s "{digest}" > "$3" ;;
inspect) echo "r/ngf-python@{other}" ;;
esac
"""


def pushed(folder, name, script, digest, revision="0123456789ab"):
    engine = folder / name
    engine.write_text(script.format(digest=digest, other=OTHER))
    engine.chmod(0o755)
    (folder / "src/ngf").mkdir(parents=True)
    (folder / "src/ngf/__init__.py").write_text('__version__ = "0.1.0"\n')
    words = ["make", "-s", "-f", ROOT / "Makefile", "image-push", f"ENGINE={engine}"]
    return subprocess.run(
        [*words, f"REVISION={revision}", "REGISTRY=r"], cwd=folder, capture_output=True, text=True
    )


ENGINES = [("docker", DOCKER), ("podman", PODMAN)]


@pytest.mark.parametrize(("name", "script"), ENGINES)
def test_the_digest_is_that_of_the_push(tmp_path, name, script):
    done = pushed(tmp_path, name, script, PUSHED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"export NGF_IMAGE=r/ngf-python@{PUSHED}"


@pytest.mark.parametrize(("name", "script"), ENGINES)
def test_a_push_that_names_no_digest_fails(tmp_path, name, script):
    done = pushed(tmp_path, name, script, "")
    assert done.returncode != 0
    assert "named no digest of r/ngf-python:0.1.0-cuda-0123456789ab" in done.stderr
    assert "NGF_IMAGE" not in done.stdout


def test_uncommitted_changes_are_not_pushed(tmp_path):
    done = pushed(tmp_path, *ENGINES[0], PUSHED, "0123456789ab-dirty")
    assert done.returncode != 0
    assert "commit first" in done.stderr
