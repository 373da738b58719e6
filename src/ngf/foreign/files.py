"""What a file of weights is, before anything reads it: torch and zipfile say it in riddles."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ngf.errors import InputError

POINTER = b"version https://git-lfs"
TAR = b"ustar"  # of torch before 0.1.10
PICKLE = b"\x80"  # of torch before 1.6
ZIP = b"PK"


def check(file: Path) -> None:
    """`InputError` for a file that holds no weights by name, and for one that did not arrive whole.

    What passes is a checkpoint of `torch.save`, a pickle of somebody else, or not to be told apart.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    if not head:
        raise InputError(f"{file} is empty")
    if head.startswith(POINTER):
        raise InputError(f"{file} is a pointer of Git LFS, not the weights: run `git lfs pull`")
    if file.suffix == ".safetensors":
        return
    if head.startswith(ZIP):
        _check_archive(file)
    elif not head.startswith(PICKLE) and TAR not in head:
        raise InputError(f"{file} is no checkpoint: neither torch.save nor safetensors wrote it")


def _check_archive(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            parts = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise InputError(f"{file} is damaged or not whole: fetch it again") from error
    if "constants.pkl" in parts:
        raise InputError(_as_weights(file, "a TorchScript model", "torch.jit", ".state_dict()"))
    if "archive_format" in parts:
        raise InputError(_as_weights(file, "an exported graph", "torch.export", ".state_dict"))
    if "data.pkl" not in parts:
        raise InputError(f"{file} is an archive, but not one that torch.save wrote")


def _as_weights(file: Path, what: str, room: str, state: str) -> str:
    return (
        f"{file} is {what}, and its weights alone are needed: where you trust it, run "
        f"torch.save({room}.load('{file}'){state}, 'weights.pt') and give that file"
    )
