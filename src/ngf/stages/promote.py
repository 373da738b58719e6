"""promote: a purified model into the MLflow registry, with the gate's verdict."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ngf.params import Sections
from ngf.stages import Outcome, Reads, Writes

if TYPE_CHECKING:
    from ngf.champion import Snapshot, Version
    from ngf.gate import Gate
    from ngf.lineage.promotion import Application

SETTINGS = {"gate": "promote"}


def promote(
    *,
    model: Annotated[Path, Reads("the purified model")],
    evaluation: Annotated[Path, Reads("what evaluate wrote about it", parent=True)],
    inspection: Annotated[Path | None, Reads("what inspect wrote about it")] = None,
    out: Annotated[Path, Writes("JSON: the decision", attach=True)],
    settings: Sections,
) -> Outcome:
    """Register a purified model: candidate where it passes the gate, champion where it is better.

    A model that does not pass is registered too, without alias and with the reasons, so that the
    registry shows what was tried.
    """
    from ngf import store
    from ngf.lineage import promotion
    from ngf.progress import busy

    judged = _judge(model, evaluation, inspection, settings)
    with busy(f"register {judged.wanted.name}"):
        version, found = promotion.promote(store.load_model(model), judged.wanted)
    store.write_json(out, _decision(judged, version, found))
    registered = {"registered": f"{judged.wanted.name}/{version.number}"}
    passed = {"passed": float(not judged.reasons)}
    return Outcome(_message(judged, version), passed, registered)


def preview(
    *, model: Path, evaluation: Path, inspection: Path | None = None, settings: Sections
) -> Outcome:
    """What `promote` would decide now; nothing is written anywhere."""
    from dataclasses import replace

    from ngf import champion, store
    from ngf.lineage import LineageError, address, promotion

    judged = _judge(model, evaluation, inspection, settings)
    store.load_model(model)
    passed = {"passed": float(not judged.reasons)}
    try:
        version, found, new = promotion.foresee(judged.wanted)
    except LineageError as error:
        would = "refused: " + "; ".join(judged.reasons) if judged.reasons else "passed the gate"
        message = f"dry run: {judged.wanted.name}: {would}; MLflow at {address()}: {error}"
        return Outcome(message, passed)
    tags = dict(version.tags)
    for change in champion.changes(found, "now"):
        if change.number == version.number and change.tags:
            tags |= change.tags
    said = _message(judged, replace(version, tags=tags))
    return Outcome(f"dry run: {said}" if new else f"dry run: nothing would change: {said}", passed)


def parsed(settings: Sections) -> Gate:
    """What a model must reach."""
    from ngf import params
    from ngf.gate import Gate

    return params.parse(Gate, settings["gate"], "promote")


@dataclass(frozen=True)
class _Judged:
    wanted: Application
    reasons: list[str]


def _judge(model: Path, evaluation: Path, inspection: Path | None, settings: Sections) -> _Judged:
    """What the gate says, and all that a version will say of itself."""
    from ngf import champion, evidence, store
    from ngf.errors import InputError
    from ngf.gate import objections
    from ngf.lineage.circumstances import circumstances
    from ngf.lineage.promotion import DIGEST, Application

    metrics = store.load_metrics(evaluation)
    gate = parsed(settings)
    if gate.max_lambda_ratio is not None and inspection is None:
        raise InputError(
            "promote.max_lambda_ratio asks for curvature: give what `ngf inspect` wrote as "
            "--inspection, or set it to null"
        )
    curvature = store.read_json(inspection / "curvature.json") if inspection else None
    reasons = objections(metrics, gate, curvature)
    name = f"ngf-{metrics['dataset']}-{metrics['attack']}"
    paths = {"model": model, "evaluation": evaluation, "inspection": inspection}
    digests = {key: store.digest(path) for key, path in paths.items() if path}
    tags = {
        "ngf.gate": "refused" if reasons else champion.PASSED,
        "ngf.decision": champion.REFUSED if reasons else champion.REGISTERED,
        "ngf.reason": "; ".join(reasons) or "passed the gate",
        **evidence.evidence(metrics, gate.asked(), curvature),
        **{f"ngf.digest.{key}": digest for key, digest in digests.items()},
        DIGEST: _digest(digests, gate.asked()),
        **circumstances(),
    }
    if metrics.get("test_split"):  # not in what an older version wrote
        tags[champion.TEST_SPLIT] = metrics["test_split"]
    wanted = Application(name=name, tags=tags, description=evidence.description(tags))
    return _Judged(wanted, reasons)


def _digest(digests: dict[str, str], asked: dict[str, float]) -> str:
    """Of all that the decision rests on: the same again is the same version."""
    text = json.dumps([digests, asked], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _decision(judged: _Judged, version: Version, found: Snapshot) -> dict[str, Any]:
    return {
        "model": judged.wanted.name,
        "version": version.number,
        "passed": not judged.reasons,
        "reasons": judged.reasons,
        "decision": version.tags["ngf.decision"],
        "because": version.tags["ngf.reason"],
        "champion": found.aliases.get("champion"),
    }


def _message(judged: _Judged, version: Version) -> str:
    said = f"{version.tags['ngf.decision']}: {version.tags['ngf.reason']}"
    return f"{judged.wanted.name} version {version.number}: {said}"
