"""The gate: may this model be promoted? A pure function of metrics.json and thresholds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Thresholds, as fractions: 0.03 is three percentage points.

    max_asr_above_floor: ASR minus the reference's ASR on the same triggered images.
    max_acc_drop: the victim's ACC minus the model's.
    """

    max_asr_above_floor: float
    max_acc_drop: float


def objections(metrics: Mapping[str, Any], gate: Gate) -> list[str]:
    """Why the model may not pass, in words; empty where it may."""
    if metrics["victim_failed"]:
        return [f"nothing was there to purify: {metrics['victim_failed']}"]
    found = []
    drop = metrics["victim"]["acc"]["value"] - metrics["model"]["acc"]["value"]
    if drop > gate.max_acc_drop:
        found.append(f"ACC fell by {drop:.1%}, allowed is {gate.max_acc_drop:.1%}")
    if metrics["model"]["asr"] is not None:
        above = metrics["model"]["asr"]["value"] - metrics["reference"]["asr"]["value"]
        if above > gate.max_asr_above_floor:
            allowed = f"{gate.max_asr_above_floor:.1%}"
            found.append(f"ASR lies {above:.1%} above the floor, allowed is {allowed}")
    return found
