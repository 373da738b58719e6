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

from benchmarks.ablation import Cell, purify
from benchmarks.victims import ROOT, VARIANTS

if TYPE_CHECKING:
    from torch import Tensor

    from ngf.bench.victims import Place
    from ngf.models import Classifier

PROBES = 8


def rows(at: Place, variant: str, images: int, bases: dict[tuple, Any]) -> list[dict]:
    """Two rows, one a split, for a victim and what `ngf` makes of it.

    bases: what was measured of models that several victims are compared with; filled here.
    """
    from ngf import device, store
    from ngf.curvature.measure import measure, ratio
    from ngf.images import drawn
    from ngf.training import pixels

    where = device.deterministic(0)
    here, seed = at.folder, at.seed
    victim = store.load_model(at.variant(variant) / "victim").to(where).eval()
    model = purify(at, variant, Cell("ngf", "ngf"))[0].model.eval()
    models = {"victim": victim, "model": model}
    found = []
    for split in ("test", "train"):
        x_NHWC, y_N = drawn(store.load_split(here / split), images, seed=0, device=where)
        x_NCHW = pixels(x_NHWC)

        def look(model: Classifier, x_NCHW: Tensor = x_NCHW, y_N: Tensor = y_N) -> Any:
            return measure(model, x_NCHW, y_N, probes=PROBES, lanczos=0, top=1)

        for path in (at.reference, here / "benign" / "victim"):
            if (path, seed, split) not in bases and path.exists():
                bases[path, seed, split] = look(store.load_model(path).to(where).eval())
        reference = bases[at.reference, seed, split]
        benign = bases.get((here / "benign" / "victim", seed, split), reference)
        spectra = {name: look(model) for name, model in models.items()}
        values = {name: one.values_N for name, one in spectra.items()}
        found.append({
            "dataset": at.dataset, "norm": at.norm, "seed": seed, "variant": variant,
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
    from ngf.bench import victims

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
        at = victims.place(numbers, given.dataset, seed=seed, norm=given.norm, root=given.root)
        for variant in given.variants:
            key = (given.dataset, given.norm, seed, variant)
            if key in seen or not (at.variant(variant) / "victim").exists():
                continue
            done += rows(at, variant, given.images, bases)
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
