"""A grid as `evaluate` and `inspect` leave it, with numbers that a test chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ngf import store

CLASSES = ["stop", "<b>yield</b>", "50$ & $60"]
LAYERS = ("net.0", "Conv2d"), ("net.1", "BatchNorm2d"), ("net.2", "Linear"), ("net.3", "LayerNorm")


def share(value: float | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 200, "per_class": []}


def three(acc: float, asr: float | None, ra: float | None) -> dict[str, Any]:
    return {"acc": share(acc), "asr": share(asr), "ra": share(ra)}


def evaluated(
    runs: Path,
    attack: str,
    defense: str,
    after: tuple[float, float | None, float | None],
    *,
    before: tuple[float, float | None, float | None] = (0.97, 1.0, 0.0),
    failed: str | None = None,
    dataset: str = "signs",
    seconds: float = 5.0,
    classes: list[str] = CLASSES,
    along: bool = False,
) -> Path:
    """`runs`/<dataset>/<attack>/<defense> with evaluation/ and report.json; the folder."""
    benign = before[1] is None
    folder = runs / dataset / attack.replace("/", "_") / defense
    (folder / "evaluation").mkdir(parents=True)
    content: dict[str, Any] = {
        "dataset": dataset, "attack": attack, "defense": defense, "classes": classes,
        "victim_failed": failed, "model": three(*after), "victim": three(*before),
        "reference": three(0.98, *((None, None) if benign else (0.01, 0.97))),
        "against_reference": {
            "acc_drop": share(0.98 - after[0]),
            "asr_above_floor": share(None if after[1] is None else after[1] - 0.01),
            "ra_below_ceiling": share(None if after[2] is None else 0.97 - after[2]),
        },
    }  # fmt: skip
    if along:
        content["along"] = [{"step": 5, "acc": 0.9, "asr": 0.5, "ra": 0.4}]
    store.write_json(folder / "evaluation" / "metrics.json", content)
    counts = (np.eye(len(classes), dtype=int) * 9 + 1).tolist()
    matrices = {"classes": classes, "model": counts, "victim": counts, "reference": counts}
    store.write_json(folder / "evaluation" / "confusion.json", matrices)
    if not benign:
        Image.new("RGB", (60, 18), (90, 30, 10)).save(folder / "evaluation" / "triggered.png")
    numbers = {"seconds": seconds, "parameters_tuned": 1234, "steps": 20}
    store.write_json(folder / "report.json", numbers)
    return folder


def inspected(folder: Path) -> Path:
    """`folder`/inspection, plausible: victim sharper than reference, model between."""
    place = folder / "inspection"
    place.mkdir()
    store.write_json(place / "curvature.json", {"test": _split(True), "train": _split(False)})
    alpha = np.linspace(-0.3, 0.3, 7)
    bowl = 0.1 + 20 * (alpha[:, None] ** 2 + 2 * alpha[None] ** 2)
    surfaces = {
        who: {"alpha": alpha.tolist(), "loss": (bowl * much).tolist(), "lambda": [80.0, 40.0]}
        for who, much in (("victim", 3.0), ("model", 1.0))
    }
    store.write_json(place / "surface.json", surfaces)
    rng = np.random.default_rng(0)
    y = [label for label in range(len(CLASSES)) for _ in range(20)]
    points = {who: rng.normal(size=(60, 2)).round(2).tolist() for who in ("victim", "model")}
    features = {"classes": CLASSES, "y": y, "triggered": [i % 3 == 0 for i in range(60)], **points}
    store.write_json(place / "features.json", features)
    layers = [
        {"layer": name, "kind": kind, "parameters": 9, "moved": 0.1 * i if i else None}
        for i, (name, kind) in enumerate(LAYERS)
    ]
    (place / "movement.json").write_text(store.json.dumps({"layers": layers}))
    return place


def _split(with_density: bool) -> dict[str, Any]:
    def estimate(value: float) -> dict[str, float]:
        return {"value": value, "se": 1.0, "low": 0.8 * value, "high": 1.2 * value}

    def one(sharp: float) -> dict[str, Any]:
        grid = np.linspace(-2, sharp, 40)
        found = {"loss": 0.1, "lambda_max": estimate(sharp), "trace": estimate(9 * sharp)}
        found["fisher_trace"] = estimate(8 * sharp)
        if with_density:
            found["density"] = {"grid": grid.tolist(), "density": np.exp(-(grid**2)).tolist()}
        return found

    models = {"reference": one(20.0), "victim": one(600.0), "model": one(30.0)}
    return {"n": 200, "ratio": estimate(1.5), **models}


def row(label: str, seed: int, after: tuple[float, float, float], **more: Any) -> dict[str, Any]:
    """One of benchmarks/ablation.py, in per cent."""
    names = {"dataset": "signs", "norm": "batch", "seed": seed, "variant": "badnets"}
    found = {**names, "label": label, "seconds": 5.0, "tuned": 1234, "steps": 20}
    measured = {"victim": (97.0, 100.0, 0.0), "reference": (98.0, 1.0, 97.0), "model": after}
    for who, values in measured.items():
        found |= {f"{who}_{k}": v for k, v in zip(("acc", "asr", "ra"), values, strict=True)}
    return {**found, **more}
