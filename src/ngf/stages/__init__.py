"""The stages, and the one way to run them.

A stage is ONE function in a module of its own name: paths in, files out. Its keyword arguments say
everything: `Annotated[Path, Reads(...)]` is an input artifact, `Annotated[Path, Writes(...)]` an
output, a plain string a name, and `settings` the sections of params.yaml that its module's
`SETTINGS` lists, which its module's `parsed` checks and turns into what the function takes. The
command line, dvc.yaml, the Kubeflow components and the lineage all follow from that signature.

`run` gives every caller the same promises: inputs exist, outputs appear whole or not at all, and
the run is recorded.
"""

from __future__ import annotations

import importlib
import itertools
import tempfile
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature  # `inspect` itself is a stage
from pathlib import Path
from typing import Any

from ngf import params, store
from ngf.errors import InputError
from ngf.params import Sections, Settings

NAMES = ("prepare", "poison", "train", "purify", "evaluate", "inspect", "promote")
TOGETHER = ("train",)  # what several processes of torchrun can do


@dataclass(frozen=True)
class Reads:
    """An artifact that the stage reads.

    parent: its writer is the run's parent in the lineage; of several the last one given.
    """

    help: str
    parent: bool = False


@dataclass(frozen=True)
class Writes:
    """An artifact that the stage writes. attach: small enough to travel with the MLflow run."""

    help: str
    attach: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a stage says when it is done: a line for people, numbers and names for the lineage."""

    message: str
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"message": self.message, **self.tags, "metrics": self.metrics}


Stage = Callable[..., Outcome]


def module(name: str) -> Any:
    return importlib.import_module(f"ngf.stages.{name}")


def function(name: str) -> Stage:
    stage: Stage = getattr(module(name), name)
    return stage


def marks(name: str) -> dict[str, Reads | Writes | str]:
    """{argument: its mark, or its help where it is a plain name}, without `settings`."""
    hints = typing.get_type_hints(function(name), include_extras=True)
    arguments = signature(function(name)).parameters
    return {arg: _mark(hints[arg]) for arg in arguments if arg != "settings"}


def _mark(hint: Any) -> Reads | Writes | str:
    _, mark = typing.get_args(hint)
    assert isinstance(mark, Reads | Writes | str)
    return mark


def sections(name: str, arguments: dict[str, Any]) -> dict[str, str]:
    """{key in `settings`: dotted path in params.yaml} for these arguments."""
    return {key: path.format(**arguments) for key, path in module(name).SETTINGS.items()}


def check(numbers: Settings, names: Mapping[str, Sequence[str]], file: Path) -> None:
    """Whether every stage takes its sections of a parameter file, for all combinations of names.

    Args:
        numbers: the whole file. names: {"dataset": those that are active, "attack", "defense"}.
        file: named in errors.

    Raises:
        InputError: a section is not there, or has a key or a value that its stage does not take.
    """
    for name in NAMES:
        parsed = module(name).parsed
        asked = [key for key in signature(parsed).parameters if key != "settings"]
        for those in itertools.product(*(names[key] for key in asked)):
            given = dict(zip(asked, those, strict=True))
            found = {
                key: params.section(numbers, path, file)
                for key, path in sections(name, given).items()
            }
            parsed(found, **given)


def run(name: str, *, settings: Sections, **arguments: Any) -> Outcome:
    """Run one stage with its promises kept.

    Raises:
        InputError: a missing input, an unknown name, a wrong number; nothing is written.
    """
    from ngf import launch, lineage

    if launch.world() > 1 and name not in TOGETHER:
        raise InputError(f"{name} runs in one process; torchrun is for {', '.join(TOGETHER)}")
    reads, writes = _inputs(name, arguments), artifacts(name, arguments, Writes)
    if launch.rank():
        return _follow(name, writes, {**arguments, **reads, "settings": settings})
    with lineage.recording(name, settings, reads) as record:
        with store.whole(writes) as partial:
            given = {**arguments, **reads, **partial}
            outcome = function(name)(settings=settings, **given)
        if record:
            record.done(outcome, writes)
    return outcome


def previews(name: str) -> bool:
    """Whether the stage's module can say what it would do."""
    return hasattr(module(name), "preview")


def preview(name: str, *, settings: Sections, **arguments: Any) -> Outcome:
    """What the stage would do, without writing anything anywhere; no run is recorded.

    Raises:
        InputError: as `run`.
    """
    reads = _inputs(name, arguments)
    taken = {key: arguments.get(key) for key, mark in marks(name).items() if isinstance(mark, str)}
    outcome: Outcome = module(name).preview(settings=settings, **{**taken, **reads})
    return outcome


def _inputs(name: str, arguments: Mapping[str, Any]) -> dict[str, Path]:
    reads = artifacts(name, arguments, Reads)
    for key, path in reads.items():
        if not path.exists():
            raise InputError(f"{name}: no {key} at {path}")
    return reads


def _follow(name: str, writes: Mapping[str, Path], arguments: dict[str, Any]) -> Outcome:
    """Of several processes the first one writes and records; what others write is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = {key: Path(folder) / path.name for key, path in writes.items()}
        return function(name)(**{**arguments, **elsewhere})


def artifacts(
    name: str, arguments: Mapping[str, Any], kind: type[Reads] | type[Writes]
) -> dict[str, Path]:
    """The artifacts of one kind among the arguments, {argument: path}."""
    return {
        key: Path(arguments[key])
        for key, mark in marks(name).items()
        if isinstance(mark, kind) and arguments.get(key) is not None
    }
