"""inspect: what purification did to a model: curvature, loss surface, features, movement.

Beside the victim and the clean reference, on held-out test images and on training images; the same
images for all three. Nothing here decides anything, but for the gate's optional bound on sharpness.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ngf import params
from ngf.errors import InputError
from ngf.params import Sections
from ngf.stages import Outcome, Reads, Writes

if TYPE_CHECKING:
    from torch import Tensor

    from ngf.attacks import Trigger
    from ngf.datasets import Split
    from ngf.models import Classifier

SETTINGS = {"plan": "inspect"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is looked at.

    images: of test and of train, whose loss is differentiated. probes: of the traces.
    lanczos: steps towards the density, on test images. surface: steps along each direction, odd;
    surface_images: of the loss there. features: test images in the map, a third of them triggered.
    seed: of rows and directions.
    """

    images: int
    probes: int
    lanczos: int
    surface: int
    surface_images: int
    features: int
    seed: int

    def __post_init__(self) -> None:
        params.at_least(2, images=self.images, probes=self.probes)
        params.at_least(0, lanczos=self.lanczos)
        params.at_least(3, surface=self.surface, features=self.features)
        if self.surface % 2 == 0:
            raise InputError(f"surface must be odd, the model in its middle, got {self.surface}")
        params.within("surface_images", self.surface_images, 1, self.images)


def inspect(
    *,
    model: Annotated[Path, Reads("the purified model", parent=True)],
    victim: Annotated[Path, Reads("the model before the defense")],
    reference: Annotated[Path, Reads("the clean reference")],
    trigger: Annotated[Path, Reads("the victim's trigger")],
    train: Annotated[Path, Reads("the training split, without poison")],
    test: Annotated[Path, Reads("the test split")],
    out: Annotated[
        Path, Writes("curvature.json, surface.json, features.json, movement.json", attach=True)
    ],
    settings: Sections,
) -> Outcome:
    """Measure how sharp, how far and where: before purification, after, and a clean reference."""
    from ngf import device, movement, store
    from ngf.curvature.measure import compare, measure
    from ngf.images import drawn
    from ngf.training import pixels

    plan = parsed(settings)
    where = device.deterministic(plan.seed)
    paths = {"reference": reference, "victim": victim, "model": model}
    models = {name: store.load_model(path).to(where).eval() for name, path in paths.items()}
    splits = {"test": store.load_split(test), "train": store.load_split(train)}
    opener = store.load_trigger(trigger)
    found: dict[str, Any] = {}
    surfaces: dict[str, Any] = {}
    for name, split in splits.items():
        x_NHWC, y_N = drawn(split, plan.images, seed=plan.seed, device=where)
        x_NCHW = pixels(x_NHWC)
        effort = {"probes": plan.probes, "lanczos": plan.lanczos if name == "test" else 0}
        spectra = {
            whose: measure(one, x_NCHW, y_N, seed=plan.seed, **effort)
            for whose, one in models.items()
        }
        found[name] = compare(spectra)
        if name == "test":
            part = (x_NCHW[: plan.surface_images], y_N[: plan.surface_images])
            surfaces = _surfaces(models, spectra, *part, plan.surface)
    out.mkdir()
    store.write_json(out / "curvature.json", found, lines=False)
    store.write_json(out / "surface.json", surfaces, lines=False)
    store.write_json(
        out / "features.json", _features(models, splits["test"], opener, plan, where), lines=False
    )
    layers = movement.by_layer(models["victim"], models["model"])
    store.write_json(out / "movement.json", {"layers": layers}, lines=False)
    return _outcome(models["model"], found["test"])


def parsed(settings: Sections) -> Plan:
    """How much is looked at."""
    return params.parse(Plan, settings["plan"], "inspect")


def _surfaces(
    models: dict[str, Classifier], spectra: Any, x_NCHW: Tensor, y_N: Tensor, steps: int
) -> dict[str, Any]:
    """Victim and model along their own directions, as far as the sharper one needs."""
    from ngf.curvature.surface import reach, surface

    both = ("victim", "model")
    far = reach(max(spectra[whose].top[0] for whose in both))
    found = {}
    for whose in both:
        u_2D = spectra[whose].vectors_KD
        found[whose] = surface(models[whose], x_NCHW, y_N, u_2D, reach=far, steps=steps)
        found[whose]["lambda"] = spectra[whose].top
    return found


def _features(
    models: dict[str, Classifier], test: Split, opener: Trigger, plan: Plan, where: Any
) -> dict[str, Any]:
    """Where clean images and a third as triggered copies lie, before and after."""
    import torch

    from ngf.feature_map import features, in_two
    from ngf.images import drawn
    from ngf.training import pixels

    x_NHWC, y_N = drawn(test, plan.features, seed=plan.seed + 1, device=where)
    counts_N = opener.wanted(y_N) >= 0
    chosen = counts_N & (torch.arange(len(y_N), device=where) < len(y_N) // 3)
    with_NHWC = opener.apply(x_NHWC[chosen], y_N[chosen]) if chosen.any() else x_NHWC[:0]
    x_MCHW = pixels(torch.cat([x_NHWC[~chosen], with_NHWC]))
    labels = torch.cat([y_N[~chosen], y_N[chosen]]).tolist()
    triggered = [False] * int((~chosen).sum()) + [True] * len(with_NHWC)
    maps = {
        whose: in_two(features(models[whose], x_MCHW), seed=plan.seed)
        for whose in ("victim", "model")
    }
    return {"classes": list(test.classes), "y": labels, "triggered": triggered, **maps}


def _outcome(model: Classifier, found: dict[str, Any]) -> Outcome:
    values = {
        f"{whose}_{key}": found[whose][key]["value"]
        for whose in ("reference", "victim", "model")
        for key in ("lambda_max", "trace", "fisher_trace")
    }
    names = {key: str(model.card.get(key, "none")) for key in ("dataset", "attack", "defense")}
    before, after, clean = (values[f"{w}_lambda_max"] for w in ("victim", "model", "reference"))
    said = f"λ_max {before:.1f} before, {after:.1f} after, {clean:.1f} of the clean reference"
    message = f"{' '.join(names.values())}: {said}"
    return Outcome(message, {**values, "lambda_ratio": found["ratio"]["value"]}, names)
