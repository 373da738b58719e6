"""Raw images from a real git repository, a real DVC and real remotes: a folder, and S3 by moto."""

import os
import subprocess
import sys

import pytest
from servers import S3_KEYS

from ngf import raw
from ngf.errors import InputError


def run(*words, cwd, **environment):
    env = {**os.environ, "DVC_NO_ANALYTICS": "1", **environment}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def git(*words, cwd):
    return run("git", "-c", "user.name=n", "-c", "user.email=e", *words, cwd=cwd)


def tracked(folder, remote, **environment):
    """A repository whose DVC tracks data/mine/raw in two versions. Returns the revision of each."""
    folder.mkdir()
    dvc = [sys.executable, "-m", "dvc"]
    git("init", "-q", cwd=folder)
    run(*dvc, "init", "-q", cwd=folder)
    run(*dvc, "remote", "add", "-d", "store", remote, cwd=folder)
    revisions = []
    for content in ("first", "second"):
        image = folder / "data" / "mine" / "raw" / "a" / "1.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_text(content)
        run(*dvc, "add", "-q", "data/mine/raw", cwd=folder)
        run(*dvc, "push", "-q", cwd=folder, **environment)
        git("add", ".", cwd=folder)
        git("commit", "-qm", content, cwd=folder)
        revisions.append(git("rev-parse", "HEAD", cwd=folder))
    return revisions


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    return folder / "repository", tracked(folder / "repository", folder / "remote")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_revision_has_its_own_images(repository, here):
    place, revisions = repository
    for revision, content in zip(revisions, ("first", "second"), strict=True):
        folder = here / revision
        folder.mkdir()
        os.chdir(folder)
        raw.pull(str(place), revision, "data/mine/raw")
        assert (folder / "data/mine/raw/a/1.png").read_text() == content
        assert [path.name for path in (folder / "data/mine").iterdir()] == ["raw"]


def test_what_is_there_is_kept(here):
    (here / "data" / "raw").mkdir(parents=True)
    raw.pull("/no/such/repository", "HEAD", "data/raw")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repository": "/no/such/repository"}, "data/mine/raw of /no/such/repository at HEAD"),
        ({"revision": "nowhere"}, "nowhere"),
        ({"path": "data/other"}, "data/other of"),
        ({"path": "/data"}, "'/data' is absolute"),
    ],
)
def test_what_is_not_there_is_named_and_leaves_nothing(repository, here, change, said):
    given = {"repository": str(repository[0]), "revision": "HEAD", "path": "data/mine/raw"}
    with pytest.raises(InputError) as error:
        raw.pull(**{**given, **change})
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not [path for path in here.rglob("*") if path.is_file()]


def test_a_token_goes_to_https_alone_and_into_no_message(here, monkeypatch):
    monkeypatch.setenv("NGF_GIT_TOKEN", "a/b")
    assert raw._with_token("https://host/ngf") == "https://oauth2:a%2Fb@host/ngf"
    for other in ("https://me@host/ngf", "git@host:ngf", "/srv/ngf", "http://host/ngf"):
        assert raw._with_token(other) == other
    with pytest.raises(InputError) as error:
        raw.pull("https://127.0.0.1:1/ngf", "HEAD", "data/mine/raw")
    assert "a%2Fb" not in str(error.value)


@pytest.mark.slow
def test_images_in_an_s3_store(s3, here, monkeypatch):
    address, bucket = s3
    keys = {**S3_KEYS, "AWS_ENDPOINT_URL": address}
    for key, value in keys.items():
        monkeypatch.setenv(key, value)
    first, _ = tracked(here / "repository", f"s3://{bucket}/dvc", **keys)
    raw.pull(str(here / "repository"), first, "data/mine/raw")
    assert (here / "data/mine/raw/a/1.png").read_text() == "first"
