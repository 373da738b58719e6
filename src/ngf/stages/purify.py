"""purify: a victim and the defender's clean split in, a purified model out.

It has no edge from the attack, the trigger, the training data or the test split: that is the
threat model, written as a signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ngf.params import Sections
from ngf.stages import Outcome, Reads, Writes

if TYPE_CHECKING:
    from ngf.datasets import Split
    from ngf.defenses import Clean
    from ngf.models import Classifier

SETTINGS = {"options": "defenses.{defense}"}


def purify(
    *,
    model: Annotated[Path, Reads("the model that may carry a backdoor", parent=True)],
    clean: Annotated[Path, Reads("the defender's clean split")],
    defense: Annotated[str, "defense to purify with"],
    out: Annotated[Path, Writes("the purified model")],
    report: Annotated[Path, Writes("JSON: seconds, parameters tuned, steps", attach=True)],
    settings: Sections,
) -> Outcome:
    """Purify a model with one defense."""
    import time

    from ngf import device, params, plugins, store

    victim, split = store.load_model(model), store.load_split(clean)
    _check_classes(victim, split)
    plugin = plugins.load("defenses", defense)
    options = params.options(plugin.purify, settings["options"], f"defenses.{defense}")
    where = device.deterministic(0)  # a defense draws from its own generator; this is the net
    started = time.perf_counter()
    purified = plugin.purify(victim.to(where), _on_device(split), **options)
    seconds = time.perf_counter() - started

    card = purified.model.card
    store.save_model(out, purified.model, role="purified", defense=defense)
    numbers = {
        "seconds": round(seconds, 3),
        "parameters_tuned": purified.tuned,
        "steps": purified.steps,
        **purified.notes,
    }
    store.write_json(report, numbers)
    names = {key: str(card.get(key, "unknown")) for key in ("dataset", "attack")}
    message = (
        f"{names['dataset']} {names['attack']} {defense}: {purified.tuned} parameters tuned "
        f"in {purified.steps} steps, {seconds:.1f} s"
    )
    return Outcome(message, numbers, {**names, "defense": defense, "role": "purified"})


def _on_device(split: Split) -> Clean:
    import torch

    from ngf import device
    from ngf.defenses import Clean

    where = device.pick()
    return Clean(
        torch.tensor(split.x_NHWC, device=where), torch.tensor(split.y_N, device=where), split.flip
    )


def _check_classes(victim: Classifier, split: Split) -> None:
    import numpy as np

    from ngf.errors import InputError

    known = victim.card["classes"]
    if len(known) != len(split.classes):
        raise InputError(
            f"the model knows {len(known)} classes and the clean split {len(split.classes)}"
        )
    counts = np.bincount(split.y_N, minlength=len(known))
    lacking = [known[label] for label in np.flatnonzero(counts == 0)]
    if lacking:
        raise InputError(f"the clean split has no image of class {', '.join(lacking[:5])}")
