"""What the tags of a registered version hold, and how a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ngf.gate import against_reference

NUMBERS = {
    "ngf.acc": "ACC",
    "ngf.asr": "ASR",
    "ngf.ra": "RA",
    "ngf.acc_drop": "ACC below the reference's",
    "ngf.asr_above_floor": "ASR above the floor",
    "ngf.lambda_ratio": "λ_max over the reference's",
}
HISTORY = (
    "ngf.promoted_at", "ngf.promoted_by", "ngf.champion_since", "ngf.champion_until",
    "ngf.previous_champion", "ngf.replaced_by", "ngf.rolled_back_at", "ngf.rolled_back_by",
    "ngf.rolled_back_because",
)  # fmt: skip


def evidence(
    metrics: Mapping[str, Any], asked: Mapping[str, float], curvature: Mapping[str, Any] | None
) -> dict[str, str]:
    """The tags that hold what was measured and what was asked; shares as fractions."""
    against = against_reference(metrics)
    measured = {f"ngf.{key}": metrics["model"][key] for key in ("acc", "asr", "ra")}
    measured |= {f"ngf.{key}": against[key] for key in ("acc_drop", "asr_above_floor")}
    measured |= {
        f"ngf.{whose}.{key}": metrics[whose][key]
        for whose in ("victim", "reference")
        for key in ("acc", "asr", "ra")
    }
    if curvature:
        measured["ngf.lambda_ratio"] = curvature["test"]["ratio"]
    tags = {f"ngf.{key}": metrics[key] for key in ("dataset", "attack", "defense")}
    for key, found in measured.items():
        if found:
            tags |= {key: f"{found['value']:.6f}"}
            tags |= {f"{key}.{end}": f"{found[end]:.6f}" for end in ("low", "high")}
    return tags | {f"ngf.threshold.{key}": f"{value:g}" for key, value in asked.items()}


def said(tags: Mapping[str, str], key: str) -> str:
    """A share as people read it, with its interval: 97.3% (96.1% to 98.2%)."""
    if key not in tags:
        return "–"
    value = f"{100 * float(tags[key]):.2f}"
    if f"{key}.low" in tags:
        value += (
            f" ({100 * float(tags[f'{key}.low']):.2f} to {100 * float(tags[f'{key}.high']):.2f})"
        )
    return value


def description(tags: Mapping[str, str]) -> str:
    """Markdown for MLflow's page of a version: the decision, and what it rests on."""
    lines = [f"**{tags['ngf.decision']}**: {tags.get('ngf.reason', '')}", ""]
    lines += [
        f"{tags.get('ngf.defense')} on {tags.get('ngf.dataset')}, attack {tags.get('ngf.attack')}; "
        f"gate: {tags.get('ngf.gate')}",
        "",
        "| in % | value (95% interval) |",
        "|---|---|",
    ]
    for key, name in NUMBERS.items():
        if key in tags:
            lines.append(f"| {name} | {said(tags, key)} |")
    lines += ["", *(_item(tags, key) for key in tags if key.startswith("ngf.threshold."))]
    lines += [_item(tags, key) for key in sorted(tags) if key.startswith(("ngf.digest", "ngf.git"))]
    lines += [_item(tags, key) for key in HISTORY if key in tags]
    return "\n".join(lines)


def _item(tags: Mapping[str, str], key: str) -> str:
    return f"- {key.removeprefix('ngf.')}: `{tags[key]}`"
