"""Artifact formats. Nothing here executes code when it is read.

split     x.npy (uint8 [N, H, W, 3], memory-mapped), y.npy (int64 [N]), card.json
poison    rows.npy, x.npy, y.npy, trigger/
trigger   tensors.safetensors, card.json
model     weights.safetensors, card.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ngf.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ngf.attacks import Poison, Trigger
    from ngf.datasets import Split
    from ngf.models import Classifier

READ_SIZE = 1 << 20


# Writing whole or not at all ------------------------------------------------------------------


@contextlib.contextmanager
def whole(targets: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Temporary names beside `targets`; moved in place together when the block succeeds.

    A block that fails, or is killed, leaves the targets as they were.
    """
    partial = {name: path.with_name(f".{path.name}.partial") for name, path in targets.items()}
    for path in partial.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(path)  # what a killed run left
    try:
        yield partial
        for name, path in targets.items():
            remove(path)
            partial[name].rename(path)
    finally:
        for path in partial.values():
            remove(path)


def remove(path: Path) -> None:
    """Delete a file or a folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """BLAKE2b of an artifact's names and bytes, 32 hexadecimal digits."""
    total = hashlib.blake2b(digest_size=16)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        total.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(READ_SIZE):
                total.update(block)
    return total.hexdigest()


# JSON and arrays ------------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return content


def _array(path: Path, *, mapped: bool = False) -> np.ndarray:
    try:
        stored: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged or is not an array: {error}") from error
    return stored


def _card(folder: Path, what: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"no {what} at {folder}")
    card = read_json(folder / "card.json")
    missing = [key for key in keys if key not in card]
    if missing:
        raise InputError(f"{folder} is not a {what}: its card lacks '{missing[0]}'")
    return card


# Splits ---------------------------------------------------------------------------------------


def save_split(folder: Path, split: Split) -> None:
    folder.mkdir()
    np.save(folder / "x.npy", split.x_NHWC)
    np.save(folder / "y.npy", split.y_N)
    keys = ("dataset", "classes", "mean", "std", "flip")
    write_json(folder / "card.json", {key: getattr(split, key) for key in keys})


def load_split(folder: Path) -> Split:
    from ngf.datasets import Split

    card = _card(folder, "split", ("dataset", "classes", "mean", "std", "flip"))
    x_NHWC, y_N = _array(folder / "x.npy", mapped=True), _array(folder / "y.npy")
    if x_NHWC.ndim != 4 or len(x_NHWC) != len(y_N) or not len(y_N):
        raise InputError(f"{folder} holds images of shape {x_NHWC.shape} and {len(y_N)} labels")
    return Split(x_NHWC, y_N, **{**card, "classes": tuple(card["classes"])})


# Poison and triggers --------------------------------------------------------------------------


def save_poison(folder: Path, poison: Poison) -> None:
    folder.mkdir()
    np.save(folder / "rows.npy", poison.rows_P)
    np.save(folder / "x.npy", poison.x_PHWC)
    np.save(folder / "y.npy", poison.y_P)
    save_trigger(folder / "trigger", poison.trigger)


def load_poison(folder: Path) -> Poison:
    from ngf.attacks import Poison

    trigger = load_trigger(folder / "trigger")
    rows_P, x_PHWC, y_P = (_array(folder / f"{name}.npy") for name in ("rows", "x", "y"))
    return Poison(rows_P, x_PHWC, y_P, trigger)


def save_trigger(folder: Path, trigger: Trigger) -> None:
    folder.mkdir()
    _save_tensors(folder / "tensors.safetensors", trigger.tensors)
    write_json(folder / "card.json", {"attack": trigger.attack, "target": trigger.target})


def load_trigger(folder: Path) -> Trigger:
    from ngf.attacks import Trigger

    card = _card(folder, "trigger", ("attack", "target"))
    return Trigger(card["attack"], card["target"], _load_tensors(folder / "tensors.safetensors"))


# Models ---------------------------------------------------------------------------------------


def save_model(folder: Path, model: Classifier, **more: Any) -> None:
    """Weights and card; `more` is added to the card."""
    folder.mkdir()
    _save_tensors(folder / "weights.safetensors", model.net.state_dict())
    write_json(folder / "card.json", {**model.card, **more})


def load_model(folder: Path) -> Classifier:
    """The classifier in `folder`, on the CPU and in evaluation mode."""
    from ngf import models

    card = _card(folder, "model", ("arch", "options", "classes", "mean", "std", "input_CHW"))
    model = models.build(card, card["mean"], card["std"], where=f"{folder}: options")
    weights = _load_tensors(folder / "weights.safetensors")
    try:
        model.net.load_state_dict(weights)
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise InputError(f"the weights in {folder} do not fit its card: {problem}") from error
    return model.eval()


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors checkpoint: {error}") from error
