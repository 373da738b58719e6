"""What a model looked like along the way, for whoever wants to measure it afterwards.

A defense says `mark` after each gradient step and learns nothing: which steps are kept, and what is
measured on them, is decided by who recorded. Where nobody records, a mark does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ngf.errors import InputError

M = TypeVar("M", bound=nn.Module)


class Snapshot(NamedTuple):
    """The model after `step` gradient steps: its tensors that differ from the start, on the CPU."""

    step: int
    tensors: dict[str, Tensor]


@dataclass
class _Recorder:
    """marks: snapshots to keep of each loop. start: the state on entering, on the CPU."""

    model: nn.Module
    marks: int
    start: dict[str, Tensor]
    found: list[Snapshot] = field(default_factory=list)
    before: int = 0  # steps of the loops that are over
    loop: int = 0  # steps of the loop that is running

    def see(self, step: int, steps: int) -> None:
        if step == 1:
            self.before, self.loop = self.before + self.loop, steps
        # Evenly spaced, the last step among them; every step where there are fewer than marks.
        if step * self.marks // steps > (step - 1) * self.marks // steps:
            self.found.append(Snapshot(self.before + step, self._changed()))

    def _changed(self) -> dict[str, Tensor]:
        now = _copied(self.model)
        return {name: now[name] for name in now if not torch.equal(now[name], self.start[name])}


_recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)


@contextlib.contextmanager
def recording(model: nn.Module, marks: int) -> Iterator[list[Snapshot]]:
    """Inside, keep `marks` evenly spaced snapshots of `model`; the list grows as they come.

    A second loop over the same model counts its steps on and has marks of its own. Nothing is
    copied where `marks` is 0.
    """
    if not marks:
        yield []
        return
    recorder = _Recorder(model, marks, _copied(model))
    token = _recorder.set(recorder)
    try:
        yield recorder.found
    finally:
        _recorder.reset(token)


def mark(model: nn.Module, step: int, steps: int) -> None:
    """`model` has just made step number `step`, counted from 1, of a loop of `steps`.

    Another network than the recorded one, for example a teacher, leaves no trail.
    """
    recorder = _recorder.get()
    if recorder is not None and recorder.model is model:
        recorder.see(step, steps)


def overlay(model: M, tensors: Mapping[str, Tensor]) -> M:
    """Make `model` that of a snapshot by putting `tensors` in place of its own; returns it.

    `model` is as it was at the start, or what the snapshots were made `relative_to`.

    Raises:
        InputError: the tensors are those of another network.
    """
    try:
        unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise InputError(f"a snapshot does not fit the model: {problem}") from error
    if unexpected:
        raise InputError(f"a snapshot does not fit the model: it has no tensor '{unexpected[0]}'")
    return model


def relative_to(
    model: nn.Module, snapshots: Iterable[Snapshot], start: Mapping[str, Tensor]
) -> list[Snapshot]:
    """The snapshots as overlays of `model`, where the way ended, and no longer of its `start`.

    What the way changed after a snapshot was still as at the start there, so it joins.
    """
    end = _copied(model)
    moved = {name: start[name] for name in start if not torch.equal(start[name], end[name])}
    return [Snapshot(step, {**moved, **tensors}) for step, tensors in snapshots]


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True) for name, t in model.state_dict().items()}
