"""Numbers live in params.yaml; a function's keyword-only arguments say which it takes."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ngf.errors import InputError

Settings = Mapping[str, Any]  # one section: a plug-in's or a stage's options
Sections = Mapping[str, Settings]  # the sections that a stage reads, under the stage's own keys


def read(file: Path) -> dict[str, Any]:
    """The whole parameter file; `InputError` where it is missing or is not a YAML mapping."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InputError(
            f"cannot read parameters from {file}: {error.strerror}; --params names the project's "
            "params.yaml"
        ) from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{file} is not valid YAML: {problem}") from error
    except (ValueError, RecursionError) as error:  # bytes that are no text, dates that are none
        raise InputError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold sections (a YAML mapping)")
    return content


def section(content: Settings, path: str, file: Path) -> Settings:
    """One section by its dotted path, for example `attacks.badnets`."""
    here: Any = content
    walked: list[str] = []
    for key in path.split("."):
        if not isinstance(here, dict) or key not in here:
            where = ".".join(walked) or "the top level"
            there = ", ".join(map(str, here)) if isinstance(here, dict) else "a plain value"
            raise InputError(f"{file} has no section '{path}': {where} holds {there}")
        here = here[key]
        walked.append(key)
    if here is None:
        return {}
    if not isinstance(here, dict):
        raise InputError(f"section '{path}' of {file} must hold settings, not {here!r}")
    return here


T = typing.TypeVar("T")


def parse(kind: type[T], given: Settings, where: str) -> T:
    """`given` as a keyword-only dataclass, checked like `options`."""
    return kind(**options(kind, given, where))


def options(function: Callable[..., Any], given: Settings, where: str) -> dict[str, Any]:
    """Check `given` against the keyword-only arguments of `function` and convert its numbers.

    A key that the function does not take, one that it lacks, or a value of another type is an
    `InputError` that names both sides. Whole floats pass as integers, because Kubeflow carries
    every number as a double.
    """
    taken = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    known = ", ".join(taken) or "no options"
    unknown = [str(key) for key in given if key not in taken]
    if unknown:
        raise InputError(f"{where}: unknown key '{unknown[0]}': it takes {known}")
    required = [name for name, p in taken.items() if p.default is inspect.Parameter.empty]
    missing = [name for name in required if name not in given]
    if missing:
        raise InputError(f"{where}: missing key '{missing[0]}': it takes {known}")
    hints = typing.get_type_hints(function)
    found = {key: _convert(value, hints[key], f"{where}.{key}") for key, value in given.items()}
    for key, value in found.items():
        if key.endswith("seed") and isinstance(value, int):  # numpy and torch take no others
            within(f"{where}.{key}", value, 0, 2**63 - 1)
    return found


def _convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind`: bool, int, float, str, dict, list[...] or a union of them."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return _convert_union(value, kind, where)
    if typing.get_origin(kind) is list and isinstance(value, list):
        (inner,) = typing.get_args(kind)
        return [_convert(item, inner, where) for item in value]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    number = number and math.isfinite(value)
    if kind is float and number:
        return float(value)
    if kind is int and number and value == int(value):
        return int(value)
    if kind in (str, bool, dict) and isinstance(value, kind):
        return value
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise InputError(f"{where}: {value!r} is not {name}")


def _convert_union(value: Any, kind: Any, where: str) -> Any:
    members = typing.get_args(kind)
    if value is None and type(None) in members:
        return None
    for member in members:
        try:
            return _convert(value, member, where)
        except InputError:
            continue
    raise InputError(f"{where}: {value!r} is not {kind}")


def within(where: str, value: float, low: float, high: float) -> None:
    """`InputError` unless low <= value <= high."""
    if not low <= value <= high:
        allowed = (
            f"be at least {low:g}" if high == math.inf else f"lie between {low:g} and {high:g}"
        )
        raise InputError(f"{where} must {allowed}, got {value:g}")


def at_least(low: float, **values: float) -> None:
    """`InputError` for the first value below `low`, by its name."""
    for name, value in values.items():
        within(name, value, low, math.inf)


def one_of(known: Collection[str], **values: str) -> None:
    """`InputError` for the first value that is not known, by its name."""
    for name, value in values.items():
        if value not in known:
            raise InputError(f"unknown {name} '{value}': there is {', '.join(known)}")
