"""What an evaluation and an inspection show: tables, charts and pictures, ready for a page.

A piece that has no data says so in its note, and which command or number makes them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngf import store
from ngf.errors import InputError
from ngf.report import charts, select

if TYPE_CHECKING:
    from markupsafe import Markup

WHO = {"victim": "victim, before", "model": "after", "reference": "clean reference"}
WHAT = {
    "acc": "clean images answered with their class",
    "asr": "triggered images answered as the attacker wants",
    "ra": "triggered images answered with their class",
}
AGAINST = {
    "acc_drop": "ACC drop: reference minus model",
    "asr_above_floor": "ASR above the floor: model minus reference",
    "ra_below_ceiling": "RA below the ceiling: reference minus model",
}
CURVATURE = {
    "lambda_max": "λ_max of the Hessian",
    "trace": "trace of the Hessian",
    "fisher_trace": "trace of the Fisher",
}
INSPECTION = ("curvature.json", "surface.json", "features.json", "movement.json")


@dataclass(frozen=True)
class Table:
    """head: names of the columns after the first. rows: (name, cells)."""

    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """panels: SVG or <img>, none where nothing is known. note: how to read it, or what is missing.

    wide: a picture that scrolls in its own box on a narrow page.
    """

    title: str
    panels: Sequence[Markup]
    note: str
    wide: bool = False


# Of an evaluation -----------------------------------------------------------------------------


def shares(metrics: Mapping[str, Any]) -> Table:
    """ACC, ASR and RA with intervals, and where it is known what the model lost image by image."""
    rows = [
        (key.upper(), [*(_interval(metrics[who][key]) for who in WHO), what])
        for key, what in WHAT.items()
    ]
    return Table([*WHO.values(), ""], rows, "In per cent of the test split, with 95% intervals.")


def against(metrics: Mapping[str, Any]) -> Table | None:
    """The model and the reference on the same images, None where that was not measured."""
    found = metrics.get("against_reference")
    if not found:
        return None
    rows = [
        (what, [_interval(pair), "–" if pair is None else f"{pair['n']:,}"])
        for key, what in AGAINST.items()
        for pair in [found.get(key)]
    ]
    note = "In points, with 95% intervals of the paired difference."
    return Table(["difference", "images"], rows, note)


def triggered(folder: Path, metrics: Mapping[str, Any]) -> Figure | None:
    """Clean images, the same triggered, and their difference; None where there is no trigger."""
    from markupsafe import Markup

    picture = folder / "triggered.png"
    if not picture.exists():
        return None
    data = base64.b64encode(picture.read_bytes()).decode()
    alt = "clean images, the same with trigger, their difference tenfold"
    seen = metrics.get("visibility") or {}
    psnr = seen.get("psnr")
    note = "Clean, triggered, their difference around grey, tenfold."
    if psnr is not None:
        note += (
            f" PSNR {psnr:.1f} dB, SSIM {seen['ssim']:.3f}, largest change "
            f"{seen['largest']} of 255 levels."
        )
    image = Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alt, data)
    return Figure("Triggered images", [image], note, wide=True)


def way(metrics: Mapping[str, Any]) -> Figure:
    points = select.points(metrics)
    note = "On the test split, at the snapshots that purification kept."
    if len(points) == 2:
        note = (
            "No snapshots were kept: before and after alone. `purify.snapshots` of params.yaml "
            "says how many."
        )
    return Figure("Along purification", _marked(charts.along(points)), note)


def confusions(folder: Path) -> Figure:
    matrices, part = select.matrices(store.read_json(folder / "confusion.json"))
    note = "Rows are classes, columns answers to clean test images; the scale is a square root's."
    if part:
        note = f"The {select.WORST} classes that the purified model knows worst. {note}"
    return Figure("Confusion matrices", _marked(charts.confusion(matrices)), note)


# Of an inspection -----------------------------------------------------------------------------


def check_inspection(folder: Path) -> None:
    missing = [name for name in INSPECTION if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} is no inspection: it lacks {missing[0]}")


def curvature(folder: Path) -> Iterator[tuple[str, Table]]:
    """(images, table) for test and train images."""
    names = {"reference": "clean reference", **WHO}
    for split, found in store.read_json(folder / "curvature.json").items():
        who = [whose for whose in names if whose in found]
        rows = [("loss, nats", [f"{found[whose]['loss']:.3g}" for whose in who])]
        rows += [
            (name, [_estimate(found[whose][key]) for whose in who])
            for key, name in CURVATURE.items()
        ]
        note = (
            f"Of the mean cross-entropy on {found['n']:,} {split} images, with 95% intervals. "
            f"λ_max after is {_estimate(found['ratio'])} times the clean reference's."
        )
        yield f"Curvature on {split} images", Table([names[whose] for whose in who], rows, note)


def inspected(folder: Path) -> Iterator[Figure]:
    """Feature map, loss surface, spectral density, movement."""
    features = store.read_json(folder / "features.json")
    yield Figure(
        "Feature map",
        _marked(charts.features(features)),
        "What goes into the classifier, in two dimensions: a colour for each class of clean "
        "images, crosses for triggered ones. Distances between far groups mean nothing.",
    )
    surface = store.read_json(folder / "surface.json")
    yield Figure(
        "Loss surface",
        _marked(charts.surface(surface)),
        "Loss on test images around each model along its own two leading Hessian eigenvectors, of "
        "length 1; the same levels in both. The cross is the model.",
    )
    spectrum = _marked(charts.density(store.read_json(folder / "curvature.json")["test"]))
    note = "Of the Hessian on test images, by Lanczos' method; both axes are logarithmic."
    yield Figure("Spectral density", spectrum, note if spectrum else "It was not measured.")
    layers = movement(folder)
    left_out = max(len(layers) - charts.MOST_LAYERS, 0)
    note = "Norm of a layer's change over its norm before, from input to output."
    if left_out:
        note += f" The {left_out} layers that moved least are left out."
    yield Figure("Movement by layer", _marked(charts.movement(layers)), note)


def movement(folder: Path) -> list[dict[str, Any]]:
    """Layers by depth; `moved` is None where the norm before was 0."""
    layers: list[dict[str, Any]] = store.read_json(folder / "movement.json")["layers"]
    return layers


# Numbers and marks ----------------------------------------------------------------------------


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    value, low, high = (100 * found[key] + 0.0 for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _estimate(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3g} ({found['low']:.3g} to {found['high']:.3g})"


def _marked(panels: Sequence[str]) -> list[Markup]:
    """Charts are the project's own markup; their texts were escaped when they were drawn."""
    from markupsafe import Markup

    return [Markup(panel) for panel in panels]
