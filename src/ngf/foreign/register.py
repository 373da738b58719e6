"""The purified model of a stranger in the MLflow registry: its files, and what was measured.

Nobody knows here whether there was a backdoor, so no gate decides, no alias is set, and no tag
says that there was one, or that there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ngf import lineage, store
from ngf.errors import InputError
from ngf.foreign import purify as foreign
from ngf.foreign import weights
from ngf.lineage import registry
from ngf.progress import busy
from ngf.stages import Outcome

TOLD = ("holdout_images", "holdout_acc_before", "holdout_acc_after", "agreement")


def purify(
    given: foreign.Given,
    *,
    name: str,
    defense: str,
    options: Mapping[str, Any],
    protocol: Mapping[str, Any],
    out: Path,
    report: Path | None,
    say: Callable[[str], None],
) -> Outcome:
    """`ngf.foreign.purify.purify` as an MLflow run whose result becomes a version of `name`.

    MLflow is asked before the work starts, and told when `out` is in place: where it fails in
    between, what lies in `out` is whole.

    Raises:
        InputError: as there, or no model can be called `name`. LineageError: MLflow is not
            reachable or refused.
    """
    registry.check_name(name)
    file = weights.locate(given.model)
    if not given.clean.is_dir():
        raise InputError(f"no folder {given.clean}")
    settings = {"options": options, "protocol": protocol}
    reads = {"model": file, "clean": given.clean}
    with lineage.recording("purify", settings, reads) as record:
        with busy("ask MLflow"):
            registry.check(name)
        done = foreign.purify(
            replace(given, model=str(file)),
            defense=defense,
            options=options,
            protocol=protocol,
            out=out,
            report=report,
            say=say,
        )
        version = _register(given, done, name=name, defense=defense, out=out)
        done = Outcome(
            f"{done.message}; {name} version {version} in MLflow",
            done.metrics,
            {**done.tags, "registered": f"{name}/{version}"},
        )
        assert record is not None, "where nothing is recorded the registry is not asked"
        numbers = {key: n for key, n in done.metrics.items() if isinstance(n, int | float)}
        written = {"out": out / file.name, "report": out / store.REPORT}
        record.done(Outcome(done.message, numbers, done.tags), written)
    return done


def _register(given: foreign.Given, done: Outcome, *, name: str, defense: str, out: Path) -> int:
    """The version. A registry that is lost by now does not take the result with it."""
    told = {key: done.metrics[key] for key in TOLD if key in done.metrics}
    tags = {key: f"{n:.4f}" if isinstance(n, float) else str(n) for key, n in told.items()}
    about = f"{given.model}, purified with {defense}; no attack is known"
    try:
        with busy(f"register {name}"):
            return registry.register_files(
                out,
                name=name,
                tags={"origin": given.model, "defense": defense, **tags},
                description=about,
            )
    except lineage.LineageError as error:
        raise lineage.LineageError(f"{error}; the purified model is not lost: {out}") from error
