"""The gate: may this model be promoted? A pure function of what was measured and thresholds.

It judges the unfavourable end of each 95% interval, so a model passes where the data show that it
keeps within the bounds, and not where they merely fail to show the opposite.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ngf.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Thresholds; None where it is not asked. Fractions, but for the ratio: 0.03 is three points.

    max_asr: of the model's ASR.
    max_asr_above_floor: of its ASR minus the reference's on the same triggered images.
    max_acc_drop: of the reference's ACC minus the model's, on the same images.
    min_ra: of its RA.
    max_lambda_ratio: of its λ_max over the reference's, on clean test images.
    """

    max_asr: float | None = None
    max_asr_above_floor: float | None = None
    max_acc_drop: float | None = None
    min_ra: float | None = None
    max_lambda_ratio: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.asked().items():
            least, most = (0.0, 1e9) if name == "max_lambda_ratio" else (-1.0, 1.0)
            if not least <= value <= most:
                raise InputError(
                    f"promote.{name} must lie between {least:g} and {most:g}, got {value:g}"
                )

    def asked(self) -> dict[str, float]:
        """The thresholds that are set."""
        return {key: n for key, n in dataclasses.asdict(self).items() if n is not None}


def objections(
    metrics: Mapping[str, Any], gate: Gate, curvature: Mapping[str, Any] | None = None
) -> list[str]:
    """Why the model may not pass, in words; empty where it may.

    metrics: of metrics.json; a benign row has no ASR and no RA, and their thresholds do not apply.
    curvature: of curvature.json; without it no ratio is judged.

    Raises:
        InputError: metrics are of a time before they compared with the reference.
    """
    if metrics["victim_failed"]:
        return [f"nothing was there to purify: {metrics['victim_failed']}"]
    model, against = metrics["model"], against_reference(metrics)
    ratio = curvature["test"]["ratio"] if curvature else None
    found = [
        _above("ACC fell by {}", against["acc_drop"], gate.max_acc_drop),
        _above("ASR is {}", model["asr"], gate.max_asr),
        _above("ASR lies {} above the floor", against["asr_above_floor"], gate.max_asr_above_floor),
        _below("RA is {}", model["ra"], gate.min_ra),
        _above("λ_max is {} times the reference's", ratio, gate.max_lambda_ratio, form=".2f"),
    ]
    return [reason for reason in found if reason]


def against_reference(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """acc_drop, asr_above_floor and ra_below_ceiling, with paired intervals."""
    if "against_reference" not in metrics:
        raise InputError(
            "metrics.json does not compare with the reference, it is of an older version: run "
            "`ngf evaluate` again"
        )
    found: Mapping[str, Any] = metrics["against_reference"]
    return found


def _above(
    what: str, measured: Mapping[str, float] | None, most: float | None, form: str = ".1%"
) -> str | None:
    if measured is None or most is None or measured["high"] <= most:
        return None
    said = what.format(format(measured["value"], form))
    return f"{said} (up to {measured['high']:{form}}), allowed is {most:{form}}"


def _below(what: str, measured: Mapping[str, float] | None, least: float | None) -> str | None:
    if measured is None or least is None or measured["low"] >= least:
        return None
    said = what.format(format(measured["value"], ".1%"))
    return f"{said} (down to {measured['low']:.1%}), least is {least:.1%}"
