"""evaluate: ACC, ASR and RA of a model, beside its victim and the clean reference.

Where `purify` kept a trail, also of the models along the way: `along` of metrics.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ngf.params import Sections
from ngf.stages import Outcome, Reads, Writes

if TYPE_CHECKING:
    from torch import Tensor

    from ngf.attacks import Trigger
    from ngf.models import Classifier
    from ngf.trail import Snapshot

SETTINGS = {"thresholds": "evaluate"}
SHOWN = 10  # images in the picture


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """implanted_asr: the victim's ASR from which an attack counts as implanted, in [0, 1]."""

    implanted_asr: float


def evaluate(
    *,
    model: Annotated[Path, Reads("the model to measure", parent=True)],
    victim: Annotated[Path, Reads("the model before the defense")],
    reference: Annotated[Path, Reads("the clean reference")],
    trigger: Annotated[Path, Reads("the victim's trigger")],
    test: Annotated[Path, Reads("the test split")],
    out: Annotated[Path, Writes("metrics.json and a picture of triggered images", attach=True)],
    settings: Sections,
) -> Outcome:
    """Measure a model on the test split, clean and triggered."""
    import torch

    from ngf import device, metrics, params, store
    from ngf.errors import InputError

    thresholds = params.parse(Thresholds, settings["thresholds"], "evaluate")
    where = device.deterministic(0)
    paths = {"model": model, "victim": victim, "reference": reference}
    models = {name: store.load_model(path).to(where) for name, path in paths.items()}
    split, opener = store.load_split(test), store.load_trigger(trigger)
    for name, path in paths.items():
        if len(models[name].card["classes"]) != len(split.classes):
            known = len(models[name].card["classes"])
            raise InputError(f"{path} knows {known} classes, the test split {len(split.classes)}")
    x_NHWC = torch.tensor(split.x_NHWC, device=where)
    y_N = torch.tensor(split.y_N, device=where)
    way = _along(models["model"], store.load_trail(model))
    everyone = {**models, **{f"step {step}": earlier for step, earlier in way.items()}}
    found = metrics.measure(everyone, x_NHWC, y_N, opener, len(split.classes))
    measured = {name: found[name] for name in models}

    before = measured["victim"]["asr"]
    names = {
        "dataset": split.dataset,
        "attack": opener.attack,
        "defense": models["model"].card.get("defense", "none"),
    }
    content = {
        **names,
        "classes": list(split.classes),
        # None: there was no attack, so there was nothing to implant.
        "implanted": None if before is None else before["value"] >= thresholds.implanted_asr,
        **measured,
    }
    if way:
        content["along"] = [{"step": step, **_shares(found[f"step {step}"])} for step in way]
    out.mkdir()
    store.write_json(out / "metrics.json", content)
    _picture(x_NHWC[:SHOWN], y_N[:SHOWN], opener).save(out / "triggered.png")
    values = {
        f"{name}_{key}": proportion["value"]
        for name, three in measured.items()
        for key, proportion in three.items()
        if proportion is not None
    }
    return Outcome(_message(names, content), values, names)


def _along(model: Classifier, snapshots: Sequence[Snapshot]) -> dict[int, Classifier]:
    """{step: the model after it}; a stored snapshot holds what differs from the stored model."""
    import copy

    from ngf import trail

    return {step: trail.overlay(copy.deepcopy(model), tensors) for step, tensors in snapshots}


def _shares(three: Mapping[str, Any]) -> dict[str, float | None]:
    """ACC, ASR and RA as plain fractions, None where no image counts."""
    return {key: found and found["value"] for key, found in three.items()}


def _message(names: dict[str, str], content: dict[str, Any]) -> str:
    shares = ", ".join(
        f"{key.upper()} {content['model'][key]['value']:.1%}"
        for key in ("acc", "asr", "ra")
        if content["model"][key]
    )
    warning = "; THE ATTACK DID NOT TAKE" if content["implanted"] is False else ""
    return f"{' '.join(names.values())}: {shares}{warning}"


def _picture(x_NHWC: Tensor, y_N: Tensor, trigger: Trigger):  # type: ignore[no-untyped-def]  # Pillow is lazy
    """Three rows: images, the same triggered, and what changed around middle grey, doubled."""
    import torch
    from PIL import Image

    with_NHWC = trigger.apply(x_NHWC, y_N)
    change_NHWC = ((with_NHWC.int() - x_NHWC.int()) * 2 + 128).clamp(0, 255).to(torch.uint8)
    rows = [torch.cat(list(row), 1) for row in (x_NHWC, with_NHWC, change_NHWC)]
    sheet = torch.cat(rows).cpu().numpy()
    return Image.fromarray(sheet).resize((sheet.shape[1] * 3, sheet.shape[0] * 3), 0)
