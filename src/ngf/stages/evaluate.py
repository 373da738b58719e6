"""evaluate: ACC, ASR and RA of a model, beside its victim and the clean reference.

Where `purify` kept a trail, also of the models along the way: `along` of metrics.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ngf import params, plugins
from ngf.params import Sections
from ngf.stages import Outcome, Reads, Writes

if TYPE_CHECKING:
    from torch import Tensor

    from ngf.models import Classifier
    from ngf.trail import Snapshot

SETTINGS = {"thresholds": "evaluate"}
SHOWN = 10  # images in the picture


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When a victim counts as one: otherwise nothing was there to purify. Fractions.

    implanted_asr: its least ASR; implanted_asr_of: that of single attacks, by name.
    max_victim_acc_drop: how far its ACC may lie below the reference's.
    """

    implanted_asr: float
    implanted_asr_of: dict
    max_victim_acc_drop: float

    def __post_init__(self) -> None:
        params.within("implanted_asr", self.implanted_asr, 0, 1)
        for attack, least in self.implanted_asr_of.items():
            params.one_of(plugins.names("attacks"), attack=attack)
            params.within(f"implanted_asr_of.{attack}", least, 0, 1)

    def failure(self, attack: str, measured: Mapping[str, Any]) -> str | None:
        """Why the victim is none, in words; None where it is, or where there was no attack."""
        victim, reference = measured["victim"], measured["reference"]
        if victim["asr"] is None:
            return None
        least = self.implanted_asr_of.get(attack, self.implanted_asr)
        if victim["asr"]["value"] < least:
            return (
                f"the attack did not take: ASR {victim['asr']['value']:.1%}, least is {least:.0%}"
            )
        drop = reference["acc"]["value"] - victim["acc"]["value"]
        if drop > self.max_victim_acc_drop:
            most = self.max_victim_acc_drop
            return f"the victim's ACC lies {drop:.1%} below the reference, allowed is {most:.0%}"
        return None


def evaluate(
    *,
    model: Annotated[Path, Reads("the model to measure", parent=True)],
    victim: Annotated[Path, Reads("the model before the defense")],
    reference: Annotated[Path, Reads("the clean reference")],
    trigger: Annotated[Path, Reads("the victim's trigger")],
    test: Annotated[Path, Reads("the test split")],
    out: Annotated[Path, Writes("metrics.json, confusion.json, triggered.png", attach=True)],
    settings: Sections,
) -> Outcome:
    """Measure a model on the test split, clean and triggered."""
    import torch

    from ngf import device, metrics, store, visibility
    from ngf.errors import InputError
    from ngf.images import on_device

    thresholds = parsed(settings)
    where = device.deterministic(0)
    paths = {"model": model, "victim": victim, "reference": reference}
    models = {name: store.load_model(path).to(where) for name, path in paths.items()}
    split, opener = store.load_split(test), store.load_trigger(trigger)
    for name, path in paths.items():
        if len(models[name].card["classes"]) != len(split.classes):
            known = len(models[name].card["classes"])
            raise InputError(f"{path} knows {known} classes, the test split {len(split.classes)}")
    x_NHWC = on_device(split.x_NHWC, where)
    y_N = torch.tensor(split.y_N, device=where)
    way = _along(models["model"], store.load_trail(model))
    everyone = {**models, **{f"step {step}": earlier for step, earlier in way.items()}}
    clean = metrics.predict(everyone, x_NHWC)
    hits, y_M = metrics.hits(everyone, x_NHWC, y_N, opener, clean)
    found = metrics.shares(hits, y_N, y_M, len(split.classes))
    measured = {name: found[name] for name in models}

    names = {
        "dataset": split.dataset,
        "attack": opener.attack,
        "defense": models["model"].card.get("defense", "none"),
    }
    content = {
        **names,
        "classes": list(split.classes),
        "test_split": store.split_digest(test),
        "victim_failed": thresholds.failure(opener.attack, measured),
        **measured,
        **_against(hits),
    }
    if way:
        content["along"] = [{"step": step, **_shares(found[f"step {step}"])} for step in way]
    clean_NHWC, with_NHWC = visibility.pairs(opener, x_NHWC, y_N)
    if len(clean_NHWC):
        content["visibility"] = visibility.visibility(clean_NHWC, with_NHWC)
    out.mkdir()
    store.write_json(out / "metrics.json", content)
    counted = {name: metrics.confusion(clean[name], y_N, len(split.classes)) for name in models}
    matrices = {"classes": list(split.classes), **counted}
    store.write_json(out / "confusion.json", matrices, lines=False)
    if len(clean_NHWC):
        picture = visibility.sheet(clean_NHWC[:SHOWN], with_NHWC[:SHOWN])
        picture.save(out / "triggered.png")
    values = {
        f"{name}_{key}": proportion["value"]
        for name, three in measured.items()
        for key, proportion in three.items()
        if proportion is not None
    }
    return Outcome(_message(names, content), values, names)


def parsed(settings: Sections) -> Thresholds:
    """When a victim counts as one."""
    return params.parse(Thresholds, settings["thresholds"], "evaluate")


def _along(model: Classifier, snapshots: Sequence[Snapshot]) -> dict[int, Classifier]:
    """{step: the model after it}; a stored snapshot holds what differs from the stored model."""
    import copy

    from ngf import trail

    return {step: trail.overlay(copy.deepcopy(model), tensors) for step, tensors in snapshots}


def _against(hits: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """What the model lost against the reference and the victim, image by image."""
    from ngf.metrics import difference

    model, victim, reference = (hits[name] for name in ("model", "victim", "reference"))
    return {
        "against_reference": {
            "acc_drop": difference(reference["acc"], model["acc"]),
            "asr_above_floor": difference(model["asr"], reference["asr"]),
            "ra_below_ceiling": difference(reference["ra"], model["ra"]),
        },
        "against_victim": {"acc_drop": difference(victim["acc"], model["acc"])},
    }


def _shares(three: Mapping[str, Any]) -> dict[str, float | None]:
    """ACC, ASR and RA as plain fractions, None where no image counts."""
    return {key: found and found["value"] for key, found in three.items()}


def _message(names: dict[str, str], content: dict[str, Any]) -> str:
    shares = ", ".join(
        f"{key.upper()} {content['model'][key]['value']:.1%}"
        for key in ("acc", "asr", "ra")
        if content["model"][key]
    )
    warning = f"; VICTIM FAILED: {content['victim_failed']}" if content["victim_failed"] else ""
    return f"{' '.join(names.values())}: {shares}{warning}"
