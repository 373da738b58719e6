"""Weights from elsewhere, read without executing code, and given back in the form they came in.

safetensors; what `torch.save` made of a state_dict, or of a dictionary that holds one; a folder or
an MLflow URI with one such file in it; a folder that this project wrote.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngf import store
from ngf.errors import InputError
from ngf.foreign import files, harmless
from ngf.lineage import registry

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pt2")
INSIDE = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
COUNTER = "num_batches_tracked"  # of a batch norm; old checkpoints have none, and nothing reads it
URIS = ("models:/", "runs:/", "mlflow-artifacts:/")


@dataclass(frozen=True)
class Checkpoint:
    """file: where the weights lie. tensors: by their names there, less the prefix.

    prefix: what stood before every name. around: what the file held beside them, and under which
    `key` they lay in it; empty where the file is a state_dict. left: what else it held that has
    tensors in it (averaged weights, an optimizer's moments): that belongs to the model as it was,
    backdoor and all, and does not come back. notes: the metadata of a safetensors file. card: this
    project's, if any.
    """

    file: Path
    tensors: dict[str, Tensor]
    prefix: str = ""
    around: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    left: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    def called(self, names: Collection[str]) -> Checkpoint:
        """The same without as much of the usual prefixes as a network with these names asks for."""
        found = self
        while True:
            wanted = {name for name in names if not name.endswith(COUNTER)}
            own = {name for name in found.tensors if not name.endswith(COUNTER)}
            common = next((p for p in PREFIXES if own and all(n.startswith(p) for n in own)), "")
            if own == wanted or not common:
                return found
            tensors = {name.removeprefix(common): t for name, t in found.tensors.items()}
            found = replace(found, tensors=tensors, prefix=found.prefix + common)

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> Path:
        """These tensors in the form of the file that was read: names, order, types and the rest."""
        named = {
            self.prefix + name: tensors[name].to(old.dtype).cpu().contiguous().clone()
            for name, old in self.tensors.items()
        }
        file = folder / self.file.name
        if self.file.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(named, file, metadata=dict(self.notes) or None)
        else:
            import torch

            torch.save({**self.around, self.key: named} if self.key else named, file)
        return file


def locate(where: str) -> Path:
    """The file of weights at a path or an MLflow URI, downloaded.

    Raises:
        InputError: nothing there, or several files. LineageError: MLflow has no such thing.
    """
    place = registry.fetch(where) if where.startswith(URIS) else Path(where)
    if not place.exists():
        raise InputError(
            f"no model at {where}: give a file, a folder with one, or {', '.join(URIS)}"
        )
    return _only_file(place) if place.is_dir() else place


def read(where: str) -> Checkpoint:
    """The checkpoint at a path or an MLflow URI.

    Raises:
        InputError: as `locate`; a file that needs code to be read, or no weights.
    """
    file = locate(where)
    files.check(file)
    card = _card(file)
    if file.suffix == ".safetensors":
        tensors = _checked(file, store.load_tensors(file))
        return Checkpoint(file, tensors, notes=_metadata(file), card=card)
    content = _unpickled(file)
    for key in ("", *INSIDE):
        inner = content.get(key) if key else content
        if isinstance(inner, Mapping) and _is_state(inner):
            rest = {name: value for name, value in content.items() if name != key} if key else {}
            left = tuple(name for name, value in rest.items() if _has_tensors(value))
            around = {name: value for name, value in rest.items() if name not in left}
            tensors = _checked(file, dict(inner))
            return Checkpoint(file, tensors, around=around, key=key, left=left, card=card)
    raise InputError(
        f"{file} holds no weights: its keys are {', '.join(map(str, list(content)[:6]))}; "
        f"a state_dict is looked for there and under {', '.join(INSIDE)}"
    )


def _only_file(folder: Path) -> Path:
    found = sorted(f for f in folder.rglob("*") if f.suffix in SUFFIXES and f.is_file())
    own = folder / "weights.safetensors"
    if own in found:
        return own
    if not found:
        raise InputError(f"{folder} holds no file of weights: {', '.join(SUFFIXES)}")
    if len(found) > 1:
        names = ", ".join(str(f.relative_to(folder)) for f in found[:5])
        raise InputError(
            f"{folder} holds {len(found)} weight files ({names}): name the one that is meant"
        )
    return found[0]


def _card(file: Path) -> dict[str, Any]:
    """The card that this project lays beside its weights; of a foreign one only what is a card."""
    place = file.with_name("card.json")
    if not place.is_file():
        return {}
    card = store.read_json(place)
    if not {"arch", "options", "classes", "mean", "std", "input_CHW"} <= card.keys():
        return {}
    numbers = [card["mean"], card["std"], card["input_CHW"]]
    lists = all(isinstance(three, list) and len(three) == 3 for three in numbers)
    real = lists and all(
        isinstance(n, int | float) and math.isfinite(n) for three in numbers for n in three
    )
    names = isinstance(card["classes"], list) and all(isinstance(n, str) for n in card["classes"])
    if not real or not names or min(card["std"]) <= 0 or not isinstance(card["options"], dict):
        raise InputError(
            f"{place} is no model's card: classes, mean, std or input_CHW are not lists"
        )
    return card


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as stored:
        return stored.metadata() or {}


def _unpickled(file: Path) -> Mapping[str, Any]:
    import torch

    data = torch.serialization.safe_globals(harmless.ALLOWED)
    try:
        with data, warnings.catch_warnings(action="ignore"):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        code = f" ({asked[1]})" if asked else ""
        raise InputError(
            f"{file} needs code to be read{code}, which is refused: ask whoever gave it for a "
            "state_dict, or convert it in a sandbox: reading it runs its code"
        ) from error
    except Exception as error:  # zip, pickle and torch have many ways to say: damaged
        raise InputError(
            f"{file} is not a checkpoint: {' '.join(str(error).split())[:200]}"
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{file} holds a {type(content).__name__}, not a state_dict")
    return content


def _is_state(content: Mapping[str, Any]) -> bool:
    import torch

    return (
        len(content) > 0
        and all(isinstance(name, str) for name in content)
        and all(isinstance(tensor, torch.Tensor) for tensor in content.values())
    )


def _has_tensors(content: Any) -> bool:
    """Anywhere inside; a single number is none, and a row of numpy's is a history."""
    import torch

    if isinstance(content, torch.Tensor):
        return content.numel() > 1
    if isinstance(content, harmless.Array):
        return content.values.ndim > 1
    if isinstance(content, Mapping):
        return any(map(_has_tensors, content.values()))
    return isinstance(content, list | tuple) and any(map(_has_tensors, content))


def _checked(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the usual types; `InputError` for quantised ones, and for none."""
    import torch

    usual = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)
    for name, tensor in tensors.items():
        if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_meta:
            raise InputError(f"{file}: {name} is sparse, nested or without values (meta)")
    odd = [name for name, tensor in tensors.items() if tensor.dtype not in usual]
    if odd:
        kind = str(tensors[odd[0]].dtype).removeprefix("torch.")
        raise InputError(f"{file}: {odd[0]} is {kind}; quantised weights cannot be purified")
    if not tensors:
        raise InputError(f"{file} holds no weights")
    return tensors
