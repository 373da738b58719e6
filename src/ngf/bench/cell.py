"""One defense on one victim: what it does to ACC, ASR and RA, how long, in how much memory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ngf.bench.victims import Place

MEASURES = ("acc", "asr", "ra")


def file(at: Place, variant: str, defense: str) -> Path:
    return at.variant(variant) / "cells" / f"{defense}.json"


def before_file(at: Place, variant: str) -> Path:
    return at.variant(variant) / "cells.before.json"


def settings(at: Place, defense: str) -> dict[str, Any]:
    """The defense's section; its views move as the training images did."""
    options = dict(at.numbers["defenses"][defense])
    if "shift" in options:
        options["shift"] = at.numbers["train"][at.dataset]["shift"]
    return options


def is_done(at: Place, variant: str, defense: str) -> bool:
    """Whether the cell's file holds a result of the victim that is there, with today's settings."""
    try:
        found = json.loads(file(at, variant, defense).read_text())
        before = json.loads(before_file(at, variant).read_text())
    except (OSError, ValueError):
        return False
    same = found.get("digests") == before["digests"]
    return same and found.get("settings") == settings(at, defense) and "error" not in found


def before(at: Place, variant: str) -> None:
    """What victim and reference say to the test images, once for all defenses."""
    from ngf import params, store
    from ngf.bench.victims import attack_options
    from ngf.stages.evaluate import Thresholds

    out = before_file(at, variant)
    here = at.variant(variant)
    digests = {
        "victim": store.digest(here / "victim"),
        "reference": store.digest(at.reference),
        "clean": store.digest(at.folder / "clean"),
        "test": store.digest(at.folder / "test"),
    }
    if out.exists() and json.loads(out.read_text())["digests"] == digests:
        return
    measured = _measured(at, variant, {"victim": here / "victim", "reference": at.reference})
    thresholds = params.parse(Thresholds, at.numbers["evaluate"], "evaluate")
    attack, _ = attack_options(variant, at.numbers)
    failed = thresholds.failure(attack, measured)
    store.write_json(out, {"digests": digests, "attack_failed": failed, **measured})


def run(at: Place, variant: str, defense: str, threads: int) -> None:
    """Purify, measure, write the cell's file; a failure becomes a file, too.

    Raises:
        Exception: what the defense raised, after it was written down.
    """
    from ngf import store

    out = file(at, variant, defense)
    out.parent.mkdir(parents=True, exist_ok=True)
    names = {
        "dataset": at.dataset, "norm": at.norm, "seed": at.seed, "attack": variant,
        "defense": defense, "settings": settings(at, defense),
    }  # fmt: skip
    before = store.read_json(before_file(at, variant))
    try:
        found = _purified(at, variant, defense)
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        with store.whole({"out": out}) as new:
            store.write_json(new["out"], {**names, "error": message})
        raise
    with store.whole({"out": out}) as new:
        store.write_json(new["out"], {**names, **before, **found, **_machine(threads)})


def _purified(at: Place, variant: str, defense: str) -> dict[str, Any]:
    import torch

    from ngf import device, store
    from ngf.bench.memory import peak_resident
    from ngf.purification import Protocol, purification

    plain = Protocol(snapshots=0, holdout=0.0, max_acc_drop=1.0, on_drop="warn", seed=0)
    clean = store.load_split(at.folder / "clean")
    on_gpu = device.pick().type == "cuda"
    start = peak_resident(anew=True)
    done = purification(
        lambda: store.load_model(at.variant(variant) / "victim"), clean,
        defense=defense, options=settings(at, defense), protocol=plain,
    )  # fmt: skip
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_resident()
    found = _measured(at, variant, {"model": done.model})
    return {
        **done.numbers,
        "peak_bytes": peak,
        "own_bytes": peak - (0 if on_gpu else start),
        **found,
    }


def _measured(at: Place, variant: str, models: Mapping[str, Any]) -> dict[str, Any]:
    """{whose: {measure: {value, low, high, n}, or None without an attack}}."""
    import torch

    from ngf import device, metrics, store
    from ngf.images import on_device

    where = device.deterministic(0)
    test = store.load_split(at.folder / "test")
    loaded = {
        name: (store.load_model(one) if isinstance(one, Path) else one).to(where).eval()
        for name, one in models.items()
    }
    trigger = store.load_trigger(at.variant(variant) / "trigger")
    x_NHWC = on_device(test.x_NHWC, where)
    y_N = torch.tensor(test.y_N, device=where)
    found = metrics.measure(loaded, x_NHWC, y_N, trigger, len(test.classes))
    return {
        whose: {key: three[key] and _short(three[key]) for key in MEASURES}
        for whose, three in found.items()
    }


def _short(share: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(share[key], 5) for key in ("value", "low", "high")} | {"n": share["n"]}


def _machine(threads: int) -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    import torch

    from ngf import device

    where = device.pick()
    name = torch.cuda.get_device_name() if where.type == "cuda" else _processor()
    versions = {package: version(package) for package in ("ngf", "torch", "numpy")}
    versions["python"] = platform.python_version()
    limit = os.environ.get(device.MAX_ISA)
    return {
        "hardware": name, **({"max_isa": limit} if limit else {}),
        "threads": threads, "versions": versions,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def _processor() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "CPU")
