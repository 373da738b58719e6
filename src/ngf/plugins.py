"""Rooms of plug-ins: a file name is a registration.

`attacks/badnets.py` is `--attack badnets`. Names that start with an underscore are helpers.
"""

import importlib
import pkgutil
from types import ModuleType

from ngf.errors import InputError

# The word a person uses for one member of each room.
ROOMS = {"datasets": "data set", "attacks": "attack", "defenses": "defense", "models": "model"}


def names(room: str) -> list[str]:
    """Every plug-in of a room, sorted."""
    package = importlib.import_module(f"ngf.{room}")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def known(room: str, name: str) -> str:
    """The name; `InputError` with the existing names where there is no such plug-in."""
    there = names(room)
    if name not in there:
        raise InputError(f"unknown {ROOMS[room]} '{name}': there is {', '.join(there)}")
    return name


def load(room: str, name: str) -> ModuleType:
    """The plug-in `name`; `InputError` as in `known`."""
    return importlib.import_module(f"ngf.{room}.{known(room, name)}")
