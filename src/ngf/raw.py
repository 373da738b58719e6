"""Raw images from a repository whose DVC tracks them, at one of its git revisions."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from ngf.errors import InputError


def pull(repository: str, revision: str, path: str) -> None:
    """Download what `path` of the repository held at that revision to the same relative path here.

    What is there already is kept. Credentials of DVC's remote come from the environment, as the
    remote's library reads them; NGF_GIT_TOKEN is for https addresses of git.

    Args:
        repository: address that git clones, or a folder. revision: a commit, tag or branch.
        path: relative to the repository's root.

    Raises:
        InputError: no such repository, revision or path, or the remote does not have the images.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    place = Path(path)
    if place.is_absolute():
        raise InputError(f"datasets.*.root '{path}' is absolute: a repository has no such path")
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    try:
        Repo.get(_with_token(repository), path, out=str(partial), rev=revision, force=True)
    except (DvcException, SCMError, OSError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        token = os.environ.get("NGF_GIT_TOKEN") or None
        said = said.replace(quote(token, safe=""), "***") if token else said
        raise InputError(f"{path} of {repository} at {revision}: {said}") from error
    partial.rename(place)


def _with_token(repository: str) -> str:
    """GitHub, GitLab and Gitea take a token as a password, whatever the user's name."""
    token, parts = os.environ.get("NGF_GIT_TOKEN"), urlsplit(repository)
    if not token or parts.scheme != "https" or "@" in parts.netloc:
        return repository
    return urlunsplit(parts._replace(netloc=f"oauth2:{quote(token, safe='')}@{parts.netloc}"))
