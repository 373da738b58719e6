"""Are backdoored minima sharper, and purified ones smoother? On the victims of runs/bench.

    python -m benchmarks.victims --dataset signs
    python -m benchmarks.curvature --dataset signs --out docs/results/curvature.json
    python -m benchmarks.curvature --cost            # against one gradient, full-width network

The authors measured 200 of the images that the defender tunes on. Here they are `--images` held-out
test images, and as many training images without their poison; for reference, victim and purified
model the same ones. The benign victim is the clean model to compare with: trained like the others,
by another seed than the reference. A row that the file holds already is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ablation import NETS
from benchmarks.victims import ROOT, VARIANTS

if TYPE_CHECKING:
    from torch import Tensor

    from ngf.models import Classifier

PROBES = 8


def rows(place: Path, numbers: dict[str, Any], images: int, bases: dict[tuple, Any]) -> list[dict]:
    """Two rows, one a split, for the victim in `place` and what `ngf` makes of it.

    bases: what was measured of models that several victims are compared with; filled here.
    """
    from ngf import device, store
    from ngf.curvature.measure import measure, ratio

    dataset, norm, seed, variant = place.parts[-4:]
    where = device.deterministic(0)
    here = place.parent
    victim = store.load_model(place / "victim").to(where).eval()
    models = {"victim": victim, "model": purified(place, numbers).eval()}
    found = []
    for split in ("test", "train"):
        x_NCHW, y_N = drawn(here / split, images, where)

        def look(model: Classifier, x_NCHW: Tensor = x_NCHW, y_N: Tensor = y_N) -> Any:
            return measure(model, x_NCHW, y_N, probes=PROBES, lanczos=0, top=1)

        for base, path in (("reference", here.parent / "reference"), ("benign", here / "benign")):
            path = path if base == "reference" else path / "victim"
            if (path, seed, split) not in bases and path.exists():
                bases[path, seed, split] = look(store.load_model(path).to(where).eval())
        reference = bases[here.parent / "reference", seed, split]
        benign = bases.get((here / "benign" / "victim", seed, split), reference)
        spectra = {name: look(model) for name, model in models.items()}
        values = {name: one.values_N for name, one in spectra.items()}
        found.append({
            "dataset": dataset, "norm": norm, "seed": int(seed), "variant": variant,
            "split": split, "n": len(y_N),
            "victim_over_benign": short(ratio(values["victim"], benign.values_N)),
            "model_over_victim": short(ratio(values["model"], values["victim"])),
            "model_over_benign": short(ratio(values["model"], benign.values_N)),
            **{
                f"{name}_{key}": short(one.as_dict()[key])
                for name, one in {**spectra, "reference": reference, "benign": benign}.items()
                for key in ("lambda_max", "trace", "fisher_trace")
            },
            **{f"{name}_loss": round(one.loss, 4) for name, one in spectra.items()},
        })  # fmt: skip
    return found


def purified(place: Path, numbers: dict[str, Any]) -> Classifier:
    """What `ngf` makes of the victim with the settings of the tables."""
    import dataclasses

    from ngf import device, params, plugins, store
    from ngf.defenses import Clean

    where = device.deterministic(0)
    plugin = plugins.load("defenses", "ngf")
    dataset = place.parts[-4]
    section = dict(numbers["defenses"]["ngf"])
    section["shift"] = {**numbers["train"][dataset], **NETS[dataset]}["shift"]
    clean = store.load_split(place.parent / "clean")
    images = Clean.of(dataclasses.replace(clean, x_NHWC=clean.x_NHWC[:]), where)
    victim = store.load_model(place / "victim").to(where)
    done = plugin.purify(victim, images, **params.options(plugin.purify, section, "ngf"))
    return done.model


def drawn(folder: Path, count: int, where: Any) -> tuple[Tensor, Tensor]:
    """So many images of a split, drawn by seed 0, in [0, 1], and their labels."""
    import numpy as np
    import torch

    from ngf import store
    from ngf.training import pixels

    split = store.load_split(folder)
    chosen = np.sort(np.random.default_rng(0).permutation(len(split.y_N))[:count])
    labels = torch.tensor(np.asarray(split.y_N)[chosen], device=where)
    return pixels(torch.tensor(split.x_NHWC[chosen], device=where)), labels


def short(found: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.4g}") for key, value in found.items()}


def cost(width: int, images: int) -> str:
    """λ_max and trace against one gradient on the same images, in one process."""
    import torch

    from ngf import device
    from ngf.curvature.measure import AT_ONCE, measure
    from ngf.models import build

    where = device.deterministic(0)
    options = {"depth": 18, "width": width, "stem_stride": 1}
    card = {"arch": "preact_resnet", "options": options, "classes": [str(c) for c in range(10)]}
    model = build({**card, "input_CHW": [3, 32, 32]}, [0.5] * 3, [0.25] * 3).to(where).eval()
    x_NCHW = torch.rand(images, 3, 32, 32, device=where)
    y_N = torch.randint(10, (images,), device=where)

    def gradient() -> None:
        for x_BCHW, y_B in zip(x_NCHW.split(AT_ONCE), y_N.split(AT_ONCE), strict=True):
            loss = torch.nn.functional.cross_entropy(model(x_BCHW), y_B, reduction="sum")
            torch.autograd.grad(loss, list(model.parameters()))

    gradient()
    started = time.perf_counter()
    gradient()
    base = time.perf_counter() - started
    started = time.perf_counter()
    found = measure(model, x_NCHW, y_N, probes=PROBES, lanczos=0, top=1)
    seconds = time.perf_counter() - started
    return (
        f"width {width}, {images} images: gradient {base:.1f} s, λ_max ({found.products} products) "
        f"and traces ({PROBES} probes) {seconds:.1f} s: {seconds / base:.0f} gradients"
    )


def main() -> None:
    from ngf import params

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="signs")
    parser.add_argument("--norm", default="batch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, default=Path("curvature.json"))
    parser.add_argument("--cost", action="store_true", help="print the cost alone")
    parser.add_argument("--width", type=int, default=64, help="of the network for --cost")
    given = parser.parse_args()
    if given.cost:
        print(cost(given.width, given.images))
        return
    numbers = params.read(Path("params.yaml"))
    done: list[dict] = json.loads(given.out.read_text()) if given.out.exists() else []
    seen = {(r["dataset"], r["norm"], r["seed"], r["variant"]) for r in done}
    bases: dict[tuple, Any] = {}
    for seed in given.seeds:
        for variant in given.variants:
            place = given.root / given.dataset / given.norm / str(seed) / variant
            key = (given.dataset, given.norm, seed, variant)
            if key in seen or not (place / "victim").exists():
                continue
            done += rows(place, numbers, given.images, bases)
            for row in done[-2:]:
                print(_line(row), flush=True)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text("[\n" + ",\n".join(json.dumps(r) for r in done) + "\n]\n")


def _line(row: dict[str, Any]) -> str:
    def shown(key: str) -> str:
        return "{value:.3g} [{low:.3g}, {high:.3g}]".format(**row[key])

    return (
        f"{row['dataset']} {row['seed']} {row['variant']} {row['split']}: λ_max "
        f"{shown('victim_lambda_max')} -> {shown('model_lambda_max')}, over benign "
        f"{shown('victim_over_benign')} -> {shown('model_over_benign')}"
    )


if __name__ == "__main__":
    main()
