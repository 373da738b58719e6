"""promote: a purified model into the MLflow registry, with the gate's verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ngf.params import Sections
from ngf.stages import Outcome, Reads, Writes

SETTINGS = {"gate": "promote"}


def promote(
    *,
    model: Annotated[Path, Reads("the purified model")],
    evaluation: Annotated[Path, Reads("what evaluate wrote about it", parent=True)],
    out: Annotated[Path, Writes("JSON: the decision", attach=True)],
    settings: Sections,
) -> Outcome:
    """Register a purified model; it becomes champion where it passes the gate.

    A model that does not pass is registered too, without alias and with the reasons, so that the
    registry shows what was tried.
    """
    from ngf import params, store
    from ngf.gate import Gate, objections
    from ngf.lineage.registry import register
    from ngf.progress import busy

    metrics = store.load_metrics(evaluation)
    gate = params.parse(Gate, settings["gate"], "promote")
    reasons = objections(metrics, gate)
    name = f"ngf-{metrics['dataset']}-{metrics['attack']}"
    verdict = "rejected: " + "; ".join(reasons) if reasons else "passed"
    shares = {
        f"{whose}_{key}": f"{metrics[whose][key]['value']:.4f}"
        for whose in ("model", "victim", "reference")
        for key in ("acc", "asr", "ra")
        if metrics[whose][key]
    }
    with busy(f"register {name}"):
        version = register(
            store.load_model(model),
            name=name,
            alias=None if reasons else "champion",
            tags={"gate": verdict, "defense": metrics["defense"], **shares},
            description=f"{metrics['defense']} on {name.removeprefix('ngf-')}: {verdict}",
        )
    decision = {"model": name, "version": version, "passed": not reasons, "reasons": reasons}
    store.write_json(out, decision)
    message = f"{name} version {version}: {verdict}"
    return Outcome(message, {"passed": float(not reasons)}, {"registered": f"{name}/{version}"})
