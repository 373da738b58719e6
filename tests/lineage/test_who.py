"""Which code runs, and for whom: the environment first, then git and the system."""

import getpass
import subprocess

import pytest

from ngf.lineage import _who, tree
from ngf.lineage.chain import Chain, Link


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("NGF_REVISION", "NGF_USER"):
        monkeypatch.delenv(name, raising=False)


def repository(folder):
    """A checkout with one commit, which is returned."""
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    words = ["git", *who, "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(words, cwd=folder, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True)
    return head.stdout.strip()


def test_the_image_s_revision_comes_before_that_of_the_folder_it_works_in(tmp_path, monkeypatch):
    head = repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert _who.git_revision() == head
    monkeypatch.setenv("NGF_REVISION", "0123456789ab-dirty")
    assert _who.git_revision() == "0123456789ab-dirty"
    monkeypatch.setenv("NGF_REVISION", "")  # an image that was built without being told
    assert _who.git_revision() == head


def test_without_git_and_environment_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _who.git_revision() is None


def test_who_starts_a_container_is_named_before_its_user(monkeypatch):
    assert _who.user() == getpass.getuser()
    monkeypatch.setenv("NGF_USER", "ada@example.org")
    assert _who.user() == "ada@example.org"


@pytest.mark.parametrize(
    ("commit", "said"),
    [
        ("0123456789abcdef" * 2 + "01234567", "git 0123456789ab\n"),
        ("0123456789ab-dirty", "git 0123456789ab-dirty\n"),
        (None, "git revision unknown\n"),
    ],
)
def test_the_lineage_says_whether_the_code_was_that_of_a_commit(commit, said):
    link = Link("r", "poison", "then", "FINISHED", commit, {}, {}, {"out": "d"})
    assert said in tree.render(Chain("runs:/r", None, {}, link))
