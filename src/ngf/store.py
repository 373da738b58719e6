"""Artifact formats. Nothing here executes code when it is read.

split     x.npy (uint8 [N, H, W, 3]) or, of images above 64 pixels, x.jpegs (one file after the
          other) and ends.npy (int64 [N], where each ends); y.npy (int64 [N]), card.json
poison    rows.npy, x.npy, y.npy, card.json, trigger/
trigger   tensors.safetensors, card.json
model     weights.safetensors, card.json; trail/<step>.safetensors where a defense's way is kept
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from ngf.errors import InputError
from ngf.images import Encoded, Images

if TYPE_CHECKING:
    from torch import Tensor

    from ngf.attacks import Poison, Trigger
    from ngf.datasets import Split
    from ngf.models import Classifier
    from ngf.trail import Snapshot

READ_SIZE = 1 << 20
PART = 1 << 26
IMAGES = ("ends.npy", "x.jpegs", "x.npy", "y.npy")  # of a split, with their labels
# What cards and results say.
SPLIT = ("dataset", "classes", "mean", "std", "flip")
POISON = ("plan", "release", "patience")
TRIGGER = ("attack", "wanted")
MODEL = ("arch", "options", "classes", "mean", "std", "input_CHW")
EVALUATION = ("dataset", "attack", "defense", "victim_failed", "model", "victim", "reference")
LISTED = "files"  # {name: digest} of what else lies in its folder, in REPORT
REPORT = "report.json"


# Writing whole or not at all ------------------------------------------------------------------


@contextlib.contextmanager
def whole(targets: Mapping[str, Path], *, listed: bool = False) -> Iterator[dict[str, Path]]:
    """Temporary names beside `targets`; moved in place together when the block succeeds.

    A block that fails, or is killed, leaves the targets as they were. Who is killed while they are
    moved leaves each whole: the new one, the old one, or the old one hidden, till the next call.

    Args:
        listed: a folder that is there is replaced only where its report lists all that it holds
            (`list_files`), and not for being in one of this project's formats.

    Raises:
        InputError: something would be deleted that is no output; asked before and after the block,
            which may take long.
    """
    _check_targets(targets, listed=listed)
    partial = {name: beside(path, "partial") for name, path in targets.items()}
    try:
        for path in targets.values():
            _restore(path)
        for path in partial.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(path)  # what a killed run left
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield partial
        _check_targets(targets, listed=listed)
        _check_kinds(targets, partial)
        for name, path in targets.items():
            _replace(path, partial[name])
    finally:
        for path in partial.values():
            remove(path)


def _replace(path: Path, new: Path) -> None:
    """`new` in the place of what is there, which is deleted when nothing needs it any more."""
    old = beside(path, "replaced")
    if os.path.lexists(path):
        path.rename(old)
    new.rename(path)
    remove(old)


def _restore(path: Path) -> None:
    """What a kill within `_replace` left: back in place, or deleted where the new one is there."""
    old = beside(path, "replaced")
    if os.path.lexists(old) and not os.path.lexists(path):
        old.rename(path)
    remove(old)


def beside(path: Path, what: str) -> Path:
    """A hidden name beside an output, whether `path` is its own or the one while it is written."""
    name = path.name.removeprefix(".").removesuffix(".partial")
    return path.with_name(f".{name}.{what}")


def _check_targets(targets: Mapping[str, Path], *, listed: bool) -> None:
    """`InputError` where moving outputs in place would delete something that is not an output."""
    resolved = {name: path.resolve() for name, path in targets.items()}
    for name, path in resolved.items():
        if Path.cwd().is_relative_to(path):
            raise InputError(f"--{name} {targets[name]} would replace the working directory")
        for other, place in resolved.items():
            if other != name and path.is_relative_to(place):
                raise InputError(f"--{name} {targets[name]} lies in --{other} {targets[other]}")
        strange = stranger(path, listed=listed) if path.is_dir() else ""
        if strange:
            raise InputError(
                f"--{name} {targets[name]} is a folder of something else: it holds {strange}, "
                "which was not written here or has changed since; name a new one"
            )


def _check_kinds(targets: Mapping[str, Path], partial: Mapping[str, Path]) -> None:
    """A folder takes no file's place, and a file no folder's."""
    for name, path in targets.items():
        if path.exists() and path.is_dir() != partial[name].is_dir():
            kinds = ("folder", "file") if path.is_dir() else ("file", "folder")
            raise InputError(f"--{name} {path} is a {kinds[0]}, and would become a {kinds[1]}")


def remove(path: Path) -> None:
    """Delete a file or a folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """BLAKE2b of an artifact's names and bytes, 32 hexadecimal digits."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return _digest(path, files).hexdigest()


def _digest(path: Path, files: Sequence[Path]) -> hashlib.blake2b:
    total = hashlib.blake2b(digest_size=16)
    for file in files:
        total.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(READ_SIZE):
                total.update(block)
    return total


# What may be replaced -------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A kind of folder that stages write.

    mark, keys: its JSON file, and what that says. beside: patterns of all else that it may hold.
    """

    mark: str
    keys: tuple[str, ...]
    beside: tuple[str, ...]

    def tells(self, folder: Path) -> bool:
        """Whether the folder's JSON file is that of this kind."""
        try:
            content = json.loads((folder / self.mark).read_text())
        except (OSError, ValueError):
            return False
        rows = content if isinstance(content, list) else [content]
        return all(isinstance(row, dict) and row.keys() >= {*self.keys} for row in rows)

    def explains(self, inside: PurePath) -> bool:
        """Whether a path in the folder is a file of this kind, or a folder of such files."""
        places = [PurePath(pattern) for pattern in (self.mark, *self.beside)]
        places += [parent for place in places for parent in place.parents]
        return any(len(p.parts) == len(inside.parts) and inside.match(str(p)) for p in places)


FORMS = (
    Form("card.json", SPLIT, ("x.npy", "x.jpegs", "ends.npy", "y.npy", "duplicates.json")),
    Form(
        "card.json",
        POISON,
        ("rows.npy", "x.npy", "y.npy", "trigger/tensors.safetensors", "trigger/card.json"),
    ),
    Form("card.json", TRIGGER, ("tensors.safetensors",)),
    Form("card.json", MODEL, ("weights.safetensors", f"trail/{6 * '[0-9]'}.safetensors")),
    Form("metrics.json", EVALUATION, ("confusion.json", "triggered.png")),
    Form("curvature.json", ("test",), ("surface.json", "features.json", "movement.json")),
    Form(
        "cells.json",
        ("dataset", "attack", "defense", "failures"),
        ("index.html", "table.md", "plots/*/*.json", "plots/*/*.csv"),
    ),
)


def stranger(folder: Path, *, listed: bool) -> str:
    """The first thing in the folder that is no output of this project; empty where all of it is.

    listed: only what the folder's report lists is an output, not what stages write.
    """
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    if listed:
        known = _listed(folder)
        left = [[path for path in inside if path not in known]]
    else:
        forms = [form for form in FORMS if form.tells(folder)]
        left = [[path for path in inside if not form.explains(path)] for form in forms]
    strange = min(left, key=len, default=inside)
    return str(strange[0]) if strange else ""


def list_files(folder: Path) -> dict[str, str]:
    """What the folder's report says of all that lies beside it, so that it may be replaced."""
    return {path.name: digest(path) for path in sorted(folder.iterdir()) if path.name != REPORT}


def _listed(folder: Path) -> set[PurePath]:
    """The files that the folder's report lists and that are as they were, and the report."""
    try:
        files = read_json(folder / REPORT).get(LISTED)
    except InputError:
        return set()
    if not isinstance(files, dict):
        return set()
    kept = {name for name in files if (folder / name).is_file()}
    same = {PurePath(name) for name in kept if digest(folder / name) == files[name]}
    return {*same, PurePath(REPORT)}


# JSON and arrays ------------------------------------------------------------------------------


def write_json(path: Path, content: Any, *, lines: bool = True) -> None:
    """lines: for people to read; else as short as it gets."""
    path.write_text(json.dumps(content, indent=2 if lines else None) + "\n")


def read_any_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    content = read_any_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return content


def _array(path: Path, *, mapped: bool = False) -> np.ndarray:
    try:
        stored: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except Exception as error:  # numpy lets zipfile, tokenize and mmap speak for themselves
        raise InputError(f"{path} is damaged or is not an array: {error}") from error
    if not isinstance(stored, np.ndarray):
        raise InputError(f"{path} is damaged or is not an array: it is an archive")
    return stored


def _card(folder: Path, what: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"no {what} at {folder}")
    card = read_json(folder / "card.json")
    missing = [key for key in keys if key not in card]
    if missing:
        raise InputError(f"{folder} is not a {what}: its card lacks '{missing[0]}'")
    for key in {"classes", "mean", "std"} & set(keys):
        if not isinstance(card[key], list) or not card[key]:
            raise InputError(f"{folder} is not a {what}: '{key}' of its card is no list")
    return card


# Splits ---------------------------------------------------------------------------------------


def save_split(folder: Path, split: Split, rows: np.ndarray | None = None) -> None:
    """Of a split, or of these rows of it; never more than `PART` bytes of images in memory."""
    folder.mkdir()
    rows = np.arange(len(split.y_N)) if rows is None else rows
    card = {key: getattr(split, key) for key in SPLIT}
    if isinstance(split.x_NHWC, Encoded):
        card["size"] = list(split.x_NHWC.shape[1:3])
        _save_encoded(folder, split.x_NHWC, rows)
    else:
        _save_pixels(folder / "x.npy", split.x_NHWC, rows)
    np.save(folder / "y.npy", split.y_N[rows])
    write_json(folder / "card.json", card)


def _save_pixels(file: Path, x_NHWC: Images, rows: np.ndarray) -> None:
    shape = (len(rows), *x_NHWC.shape[1:])
    stored = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    start = 0
    for part in parts(rows, x_NHWC):
        stored[start : start + len(part)] = x_NHWC[part]
        start += len(part)
    stored.flush()


def _save_encoded(folder: Path, x_NHWC: Encoded, rows: np.ndarray) -> None:
    """The bytes as they are: nothing is decoded."""
    sizes = np.zeros(len(rows), np.int64)
    with (folder / "x.jpegs").open("wb") as stream:
        for place, row in enumerate(rows):
            sizes[place] = stream.write(x_NHWC.code(row))
    np.save(folder / "ends.npy", sizes.cumsum())


def parts(rows: np.ndarray, x_NHWC: Images) -> Iterator[np.ndarray]:
    """The rows in parts whose images take `PART` bytes at most."""
    size = max(1, PART // max(1, math.prod(x_NHWC.shape[1:])))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def load_split(folder: Path) -> Split:
    from ngf.datasets import Split

    card = _card(folder, "split", SPLIT)
    y_N = _array(folder / "y.npy")
    encoded = (folder / "x.jpegs").exists()
    x_NHWC = _encoded(folder) if encoded else _pixels(folder, _array(folder / "x.npy", mapped=True))
    _check_labels(folder, len(x_NHWC), y_N, len(card["classes"]))
    if not len(y_N):
        raise InputError(f"{folder} holds no image")
    return Split(
        x_NHWC, y_N, **{key: card[key] for key in SPLIT} | {"classes": tuple(card["classes"])}
    )


def _encoded(folder: Path) -> Encoded:
    card = _card(folder, "split", ("size",))
    ends_N = _array(folder / "ends.npy")
    stream = (folder / "x.jpegs").open("rb")
    size = os.fstat(stream.fileno()).st_size
    fits = ends_N.ndim == 1 and ends_N.dtype == np.int64 and (np.diff(ends_N, prepend=0) > 0).all()
    if not fits or (int(ends_N[-1]) if len(ends_N) else 0) != size:
        raise InputError(f"{folder} is damaged: x.jpegs does not end where ends.npy says")
    return Encoded(stream, ends_N, card["size"])


def _pixels(folder: Path, x_NHWC: np.ndarray) -> np.ndarray:
    if x_NHWC.dtype != np.uint8 or x_NHWC.ndim != 4 or x_NHWC.shape[3] != 3:
        raise InputError(f"{folder} must hold uint8 images [N, H, W, 3], not {x_NHWC.shape}")
    return x_NHWC


def _check_labels(folder: Path, images: int, y_N: np.ndarray, n_classes: int) -> None:
    if y_N.dtype != np.int64 or y_N.shape != (images,):
        raise InputError(f"{folder} holds {images} images and labels of shape {y_N.shape}")
    if y_N.size and not 0 <= y_N.min() <= y_N.max() < n_classes:
        raise InputError(f"{folder} has labels {y_N.min()} to {y_N.max()} for {n_classes} classes")


def split_digest(folder: Path) -> str:
    """BLAKE2b of a split's images, labels and class names, 32 hexadecimal digits.

    Two splits of the same images are the same split here, though their cards differ: mean and std
    are those of the training images, and say nothing of the images that a model is measured on.
    """
    files = [folder / name for name in IMAGES if (folder / name).exists()]
    total = _digest(folder, files)
    total.update(json.dumps(_card(folder, "split", SPLIT)["classes"]).encode())
    return total.hexdigest()


# Poison and triggers --------------------------------------------------------------------------


def save_poison(folder: Path, poison: Poison) -> None:
    folder.mkdir()
    np.save(folder / "rows.npy", poison.rows_P)
    _save_pixels(folder / "x.npy", poison.x_PHWC, np.arange(len(poison.rows_P)))
    np.save(folder / "y.npy", poison.y_P)
    save_trigger(folder / "trigger", poison.trigger)
    write_json(folder / "card.json", {key: getattr(poison, key) for key in POISON})


def load_poison(folder: Path, split: Split) -> Poison:
    """The overlay in `folder`, which must fit the split that it was made for."""
    from ngf.attacks import Poison

    trigger = load_trigger(folder / "trigger")
    rows_P, y_P = (_array(folder / f"{name}.npy") for name in ("rows", "y"))
    x_PHWC = _pixels(folder, _array(folder / "x.npy", mapped=True))
    _check_labels(folder, len(x_PHWC), y_P, len(split.classes))
    fits = rows_P.shape == y_P.shape and x_PHWC.shape[1:] == split.x_NHWC.shape[1:]
    if not fits or (rows_P.size and not 0 <= rows_P.min() <= rows_P.max() < len(split.y_N)):
        raise InputError(f"{folder} was not made for this training split")
    card = _card(folder, "poison", POISON)
    return Poison(rows_P, x_PHWC, y_P, trigger, **{key: card[key] for key in POISON})


def save_trigger(folder: Path, trigger: Trigger) -> None:
    folder.mkdir()
    _save_tensors(folder / "tensors.safetensors", trigger.tensors)
    wanted_K = list(trigger.wanted_K)
    write_json(folder / "card.json", {"attack": trigger.attack, "wanted": wanted_K})


def load_trigger(folder: Path) -> Trigger:
    from ngf.attacks import Trigger

    card = _card(folder, "trigger", TRIGGER)
    return Trigger(card["attack"], card["wanted"], load_tensors(folder / "tensors.safetensors"))


# Models ---------------------------------------------------------------------------------------


def save_model(folder: Path, model: Classifier, **more: Any) -> None:
    """Weights and card; `more` is added to the card."""
    folder.mkdir()
    _save_tensors(folder / "weights.safetensors", model.net.state_dict())
    write_json(folder / "card.json", {**model.card, **more})


def load_model(folder: Path) -> Classifier:
    """The classifier in `folder`, on the CPU and in evaluation mode."""
    from ngf import models

    card = _card(folder, "model", MODEL)
    model = models.build(card, card["mean"], card["std"], where=f"{folder}: options")
    weights = load_tensors(folder / "weights.safetensors")
    try:
        model.net.load_state_dict(weights)
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise InputError(f"the weights in {folder} do not fit its card: {problem}") from error
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise InputError(f"the weights in {folder} are not finite: its training diverged")
    return model.eval()


def save_trail(folder: Path, snapshots: Sequence[Snapshot]) -> None:
    """Snapshots beside the model in `folder`, overlays of it; no `trail` where there is none."""
    if snapshots:
        (folder / "trail").mkdir()
    for step, tensors in snapshots:
        _save_tensors(folder / "trail" / f"{step:06d}.safetensors", tensors)


def load_trail(folder: Path) -> list[Snapshot]:
    """The snapshots beside the model in `folder`, by step; none where no trail was kept."""
    from ngf.trail import Snapshot

    files = list((folder / "trail").glob("*.safetensors"))
    strange = [file for file in files if not file.stem.isdecimal()]
    if strange:
        raise InputError(f"{strange[0]} is no snapshot: its name is no step")
    found = [Snapshot(int(file.stem), load_tensors(file)) for file in files]
    return sorted(found, key=lambda snapshot: snapshot.step)


def load_metrics(folder: Path) -> dict[str, Any]:
    """What `evaluate` wrote into `folder`."""
    metrics = read_json(folder / "metrics.json")
    missing = [key for key in EVALUATION if key not in metrics]
    if missing:
        raise InputError(f"{folder / 'metrics.json'} is no evaluation: it lacks '{missing[0]}'")
    return metrics


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `InputError` where it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors checkpoint: {error}") from error
