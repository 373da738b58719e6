"""Training that goes on where it was killed, to the same final weights.

What a training knows at the end of an epoch goes into one file: the model, optimizer and schedule,
all sources of chance, and what the attacker who takes part holds. Reading it executes no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ngf import launch, store


@dataclass(frozen=True)
class Checkpoint:
    """file: where. of: digest of what is trained on what; a file of another training is ignored.

    every: epochs between two writings; 0 writes none.
    """

    file: Path
    of: str
    every: int

    def read(self) -> dict[str, Any] | None:
        """What was written last, or None where there is nothing of this training."""
        try:
            content: dict[str, Any] = torch.load(self.file, "cpu", weights_only=True)
        except Exception:  # none, half a file of a full disk, another version's: it starts anew
            return None
        return content if content.get("of") == self.of else None

    def write(self, content: Mapping[str, Any]) -> None:
        """Whole or not at all; by one process of several."""
        if launch.rank() == 0:
            with store.whole({"checkpoint": self.file}) as partial:
                torch.save({**content, "of": self.of}, partial["checkpoint"])

    def remove(self) -> None:
        """When the training is done."""
        if launch.rank() == 0:
            self.file.unlink(missing_ok=True)


def digest(*things: Any) -> str:
    """Of what JSON can say, 32 hexadecimal digits."""
    text = json.dumps(things, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# What an object holds -------------------------------------------------------------------------


def state(thing: Any) -> Any:
    """The tensors, sources of chance, optimizers and numbers in `thing`, as plain containers.

    None stands for what does not change.
    """
    if isinstance(thing, Tensor):
        return thing.detach().cpu().clone()
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if hasattr(thing, "state_dict"):
        return thing.state_dict()
    if isinstance(thing, int | float):
        return thing
    found = {key: state(value) for key, value in _inside(thing)}
    return found or None


def restore(thing: Any, saved: Any) -> Any:
    """Put `state(thing)` of another time back, in place; what to hold where it is a number."""
    if saved is None:
        return thing
    if isinstance(thing, Tensor):
        with torch.no_grad():
            thing.copy_(saved)
    elif isinstance(thing, torch.Generator):
        thing.set_state(saved)
    elif hasattr(thing, "load_state_dict"):
        thing.load_state_dict(saved)
    elif isinstance(thing, int | float):
        return saved
    else:
        for key, value in _inside(thing):
            now = restore(value, saved[key])
            if isinstance(now, int | float):
                _hold(thing, key, now)
    return thing


def learned(thing: Any) -> list[Tensor]:
    """The tensors in it that are trained."""
    if isinstance(thing, Tensor):
        return [thing] if thing.is_leaf and thing.requires_grad else []
    return [tensor for _, value in _inside(thing) for tensor in learned(value)]


def _inside(thing: Any) -> list[tuple[Any, Any]]:
    from ngf.training import Partner

    if isinstance(thing, dict):
        return list(thing.items())
    if isinstance(thing, list):  # a tuple does not change
        return list(enumerate(thing))
    return list(vars(thing).items()) if isinstance(thing, Partner) else []


def _hold(thing: Any, key: Any, value: Any) -> None:
    if isinstance(thing, dict | list):
        thing[key] = value
    else:
        setattr(thing, key, value)
