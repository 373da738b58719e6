"""purify: a victim and the defender's clean split in, a purified model out.

It has no edge from the attack, the trigger, the training data or the test split: that is the
threat model, written as a signature. What makes a defense safe to use is `ngf.purification`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ngf.params import Sections
from ngf.stages import Outcome, Reads, Writes

if TYPE_CHECKING:
    from ngf.purification import Protocol

SETTINGS = {"options": "defenses.{defense}", "protocol": "purify"}


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
    import sys

    from ngf import store, trail
    from ngf.purification import purification

    protocol, options = parsed(settings, defense)
    done = purification(
        lambda: store.load_model(model),
        store.load_split(clean),
        defense=defense,
        options=options,
        protocol=protocol,
    )
    store.save_model(out, done.model, role="purified", defense=defense)
    if protocol.snapshots:
        start = store.load_model(model).state_dict()
        store.save_trail(out, trail.relative_to(done.model, done.snapshots, start))
    store.write_json(report, done.numbers)
    if done.warning:
        print(f"warning: {defense}: {done.warning}", file=sys.stderr)
    card, numbers = done.model.card, done.numbers
    names = {key: str(card.get(key, "unknown")) for key in ("dataset", "attack")}
    effort = f"{numbers['parameters_tuned']} parameters tuned in {numbers['steps']} steps"
    message = f"{' '.join(names.values())} {defense}: {effort}, {numbers['seconds']:.1f} s"
    return Outcome(
        "; ".join(filter(None, (message, done.warning))),
        numbers,
        {**names, "defense": defense, "role": "purified"},
    )


def parsed(settings: Sections, defense: str) -> tuple[Protocol, dict[str, Any]]:
    """What keeps the promises, and the options of the defense."""
    from ngf import params, plugins
    from ngf.purification import Protocol

    protocol = params.parse(Protocol, settings["protocol"], "purify")
    purify = plugins.load("defenses", defense).purify
    return protocol, params.options(purify, settings["options"], f"defenses.{defense}")
