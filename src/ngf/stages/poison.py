"""poison: the rows of the training split that an attacker rewrites, and the trigger."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from ngf.params import Sections
from ngf.stages import Outcome, Reads, Writes

SETTINGS = {"options": "attacks.{attack}"}


def poison(
    *,
    train: Annotated[Path, Reads("the training split", parent=True)],
    attack: Annotated[str, "attack to plant"],
    out: Annotated[Path, Writes("poisoned rows, as an overlay on train, and the trigger")],
    settings: Sections,
) -> Outcome:
    """Plant an attack in the training split; only the poisoned rows are written."""
    from ngf import plugins, store

    split = store.load_split(train)
    plugin = plugins.load("attacks", attack)
    options, common = parsed(settings, attack)
    planted = plugin.plant(split.x_NHWC, split.y_N, len(split.classes), **options)
    planted = dataclasses.replace(planted, **common)
    store.save_poison(out, planted)
    count, share = len(planted.rows_P), len(planted.rows_P) / len(split.y_N)
    message = (
        f"{split.dataset} {attack}: {count} of {len(split.y_N)} images ({share:.1%}) rewritten"
    )
    tags = {"dataset": split.dataset, "attack": attack}
    return Outcome(message, {"images_poisoned": count, "poison_rate": share}, tags)


def parsed(settings: Sections, attack: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the attack's plug-in, and those that are common to all attacks."""
    from ngf import attacks, params, plugins

    own, common = attacks.parted(settings["options"])
    plant = plugins.load("attacks", attack).plant
    return params.options(plant, own, f"attacks.{attack}"), common
