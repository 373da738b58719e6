"""What is said of a stranger's model: what was taken to be the case, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ngf.errors import InputError
from ngf.foreign.drift import odd

if TYPE_CHECKING:
    from ngf.datasets import Split
    from ngf.models import Classifier

ENOUGH = 10  # images a class for the defense: five and six were measured, and cost more ACC
LOW = 0.5  # an ACC below it, as a fraction, is low for a model that is in use
CHANCES = 2  # and one below so many times chance is that of a wrong order of classes
CHECK = "check the order of --classes, --mean and --std, --size, and that it takes RGB"


def echo(
    network: str, model: Classifier, split: Split, kept_K: np.ndarray, left: Sequence[str]
) -> list[str]:
    """What was taken to be the case, for a person to check.

    Args:
        network: what its architecture is called; empty: its card says it. kept_K: how many images
            of each class the defense gets. left: what the checkpoint held and the result does not.
    """
    card = model.card
    names = ", ".join(split.classes[:4]) + (", …" if len(split.classes) > 4 else "")
    name = network or card["options"].get("name") or card["arch"]
    options = {k: v for k, v in card["options"].items() if v and v != name}
    said = ", ".join(f"{k} {v}" for k, v in options.items())
    head = card.get("head") or "the last linear layer"
    size = "x".join(map(str, split.x_NHWC.shape[1:3]))
    return [
        f"network: {name}{said and f' ({said})'}; head: {head}",
        f"images: {len(split.y_N)} of {size}; {len(split.classes)} classes in this order: {names}",
        f"normalisation: mean {card['mean']}, std {card['std']}",
        *([f"left out of the result: {', '.join(left)}"] if left else []),
        *_few(kept_K, split.classes),
    ]


def _few(kept_K: np.ndarray, classes: Sequence[str]) -> list[str]:
    if kept_K.min() >= ENOUGH:
        return []
    least = f"of {classes[int(kept_K.argmin())]} the defense gets {kept_K.min()} images"
    return [f"warning: {least}, and fewer than {ENOUGH} a class are few"]


def skipped(victim: Classifier, defense: str) -> list[str]:
    """What `ngf` leaves out on this network, in words."""
    from ngf.models import batch_norms

    if defense != "ngf" or batch_norms(victim):
        return []
    return ["no batch norm: the filter of its channels is skipped, and the head alone is tuned"]


def acc_before(acc: float, split: Split, least: float | None) -> list[str]:
    """ACC on all clean images, a fraction, with a warning where it is low.

    Raises:
        InputError: it is below `least`; where that is None, below LOW and CHANCES times chance.
    """
    n_classes = len(split.classes)
    wanted = min(LOW, CHANCES / n_classes) if least is None else least
    said = f"ACC before: {acc:.1%} on {len(split.y_N)} images"
    if acc < wanted:
        raise InputError(
            f"{said} of {n_classes} classes, and from {wanted:.1%} on it could be that of this "
            f"model: {CHECK}; --least-acc 0 goes on all the same"
        )
    return [said, *([f"warning: that is low: {CHECK}"] if acc < LOW else [])]


def finding(report: Mapping[str, Any], classes: Sequence[str]) -> str:
    """What `ngf` suspects, in words; empty for other defenses."""
    if "suspected" not in report:
        return ""
    acc = report["clean_acc_before"]
    if acc < LOW:
        return f"what is suspected says nothing at an ACC before of {acc:.1%}: {CHECK}"
    found = []
    if report["suspected"]:
        target = report["suspected_target"]
        where = f"suspicious class: {classes[target]}" if target >= 0 else "led astray, to no class"
        found.append(f"{where} (gap {report['gap']:.2f})")
    if report["mixed_target"] >= 0:
        lead, gap = report["mixed_lead"], report["mixed_gap"]
        third = classes[report["mixed_target"]]
        found.append(f"two classes in one image lead to {third} (lead {lead:.2f}, gap {gap:.2f})")
    if not found:
        return "nothing suspected (a backdoor may be there all the same)"
    return "; ".join([*found, "this is no proof"])


def summary(file: Path, report: Mapping[str, Any], warning: str) -> str:
    """The line that a person gets in the end. warning: where ACC fell."""
    said = [f"{file}: {report['parameters_tuned']} parameters tuned, {report['seconds']:.1f} s"]
    if "holdout_images" in report:
        said.append(
            f"ACC on {report['holdout_images']} held-out images {report['holdout_acc_before']:.1%} "
            f"before, {report['holdout_acc_after']:.1%} after; {report['agreement']:.1%} of the "
            "answers are the same"
        )
    drifted = odd(report["batch_norm_drift"], report["batch_norm_chance"])
    layers = f"{len(drifted)} of {len(report['batch_norm_drift'])} layers"
    memory = f"batch norm remembers more than clean images in {layers}" if drifted else ""
    return "; ".join(filter(None, [*said, report["finding"], memory, warning]))
