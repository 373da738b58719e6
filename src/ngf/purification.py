"""What is done around every defense, whoever brings the model: finite weights or an error, and
where a holdout is asked for a check of ACC on clean images that the defense did not get.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ngf import params
from ngf.errors import InputError

if TYPE_CHECKING:
    import torch

    from ngf.datasets import Split
    from ngf.models import Classifier
    from ngf.trail import Snapshot

ON_DROP = ("warn", "step_back")
WAY_BACK = 8  # snapshots to step back to where the trail itself is not kept
REMEDIES = {"lr": "lower lr", "damping": "raise the damping"}  # where a defense has the option


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is done around every defense: section `purify` of params.yaml.

    snapshots: how many models along the way are kept for `evaluate`.
    holdout: share of the clean split that only the check of ACC sees, in [0, 0.5]; 0: no check.
    max_acc_drop: the largest drop on it, as a fraction, that passes without `on_drop`.
    on_drop: `warn`, or `step_back` to the latest model along the way that passes.
    seed: of the choice of the images held out.
    """

    snapshots: int
    holdout: float
    max_acc_drop: float
    on_drop: str
    seed: int

    def __post_init__(self) -> None:
        params.at_least(0, snapshots=self.snapshots)
        params.within("holdout", self.holdout, 0, 0.5)
        params.within("max_acc_drop", self.max_acc_drop, 0, 1)
        params.one_of(ON_DROP, on_drop=self.on_drop)

    @property
    def steps_back(self) -> bool:
        return self.holdout > 0 and self.on_drop == "step_back"

    @property
    def marks(self) -> int:
        """Snapshots to record, whether they are kept or only stepped back to."""
        return self.snapshots or (WAY_BACK if self.steps_back else 0)


@dataclass(frozen=True)
class Purification:
    """model: the one to go on with. numbers: for the report. warning: empty where ACC held.

    held: the images that were held out, or None. snapshots: the way, where it was recorded.
    """

    model: Classifier
    numbers: dict[str, Any]
    warning: str
    held: Split | None
    snapshots: Sequence[Snapshot]


def purification(
    victim: Callable[[], Classifier],
    split: Split,
    *,
    defense: str,
    options: Mapping[str, Any],
    protocol: Protocol,
) -> Purification:
    """Run one defense with its promises kept.

    Args:
        victim: gives the model to purify anew at each call, on the CPU. split: the clean images.

    Raises:
        InputError: an unknown defense or option, images that do not fit, or weights that diverged.
    """
    from ngf import device, holdout, plugins, trail
    from ngf.defenses import Clean

    model = victim()
    _check_classes(model, split)
    plugin = plugins.load("defenses", defense)
    options = params.options(plugin.purify, options, f"defenses.{defense}")
    where = device.deterministic(0)  # a defense draws from its own generator; this is the net
    model, guard, held = model.to(where), None, None
    if protocol.holdout:
        split, held = holdout.divide(split, protocol.holdout, protocol.seed)
        guard = holdout.Guard(model, Clean.of(held, where), protocol.max_acc_drop)
    started = time.perf_counter()
    with trail.recording(model, protocol.marks) as snapshots:
        purified = plugin.purify(model, Clean.of(split, where), **options)
    seconds = time.perf_counter() - started
    _check_finite(purified.model, defense, options)

    verdict = holdout.Verdict(purified.model, {})
    if guard:
        back = _way_back(victim, snapshots, where) if protocol.steps_back else ()
        verdict = guard.judge(purified.model, back)
    numbers = {
        "seconds": round(seconds, 3),
        "parameters_tuned": purified.tuned,
        "steps": purified.steps,
        **purified.notes,
        **verdict.numbers,
    }
    return Purification(verdict.model, numbers, verdict.warning, held, snapshots)


def _way_back(
    victim: Callable[[], Classifier], snapshots: Sequence[Snapshot], where: torch.device
) -> Iterator[tuple[int, Classifier]]:
    """(step, model) from the latest snapshot to the victim itself, which is step 0."""
    from ngf import trail

    for step, tensors in [*reversed(snapshots), trail.Snapshot(0, {})]:
        earlier = trail.overlay(victim(), tensors)
        if not _not_finite(earlier):
            yield step, earlier.to(where)


def _not_finite(model: Classifier) -> list[str]:
    """Names of parameters and buffers that hold NaN or infinity."""
    return [name for name, t in model.state_dict().items() if not t.isfinite().all()]


def _check_finite(model: Classifier, defense: str, options: Mapping[str, Any]) -> None:
    broken = _not_finite(model)
    if broken:
        remedies = [
            f"{remedy} (now {options[key]:g})" for key, remedy in REMEDIES.items() if key in options
        ]
        raise InputError(
            f"defense '{defense}' diverged: {broken[0]} is not finite; "
            + (" or ".join(remedies) or "change its options")
        )


def _check_classes(victim: Classifier, split: Split) -> None:
    import numpy as np

    known = victim.card["classes"]
    if len(known) != len(split.classes):
        raise InputError(
            f"the model knows {len(known)} classes and the clean split {len(split.classes)}"
        )
    counts = np.bincount(split.y_N, minlength=len(known))
    lacking = [known[label] for label in np.flatnonzero(counts == 0)]
    if lacking:
        raise InputError(f"the clean split has no image of class {', '.join(lacking[:5])}")
