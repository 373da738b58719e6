"""What an attack costs: poisoning 50,000 images of 32x32, and its part in a training step.

    python -m benchmarks.poisoning --attacks badnets blend wanet

Columns: seconds of `plant` and, of these, seconds in the trigger (the rest is drawing rows and the
attacker's own networks); its peak memory beyond what was there before, in units of the rewritten
rows; a training step with the attacker, in units of plain steps. Plain and attacked steps take
turns, so that a machine that slows down slows both; the ratio is that of the medians. The images
are noise: nothing here asks whether the attack takes. Every plant runs in a child process, forked
from a parent that has imported torch and computed nothing, after one on a few images, so that what
libraries load at first use is not counted.

The floor of rewriting is reading and writing the poisoned rows once: 5,000 rows are 15 MB.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks import child
from ngf.bench.memory import peak_resident

if TYPE_CHECKING:
    from ngf.attacks import Poison
    from ngf.models import Classifier

IMAGES, EDGE, CLASSES = 50_000, 32, 10
WARM_UP = 200
BATCH = 128


def planted(name: str, numbers: dict[str, Any]) -> tuple[Poison, float, float, float]:
    """(what was planted, seconds, seconds of rewriting, peak memory in rewritten rows)."""
    import numpy as np

    from ngf import attacks, params, plugins

    rng = np.random.default_rng(0)
    x_NHWC = rng.integers(0, 256, (IMAGES, EDGE, EDGE, 3), np.uint8)
    y_N = np.arange(IMAGES, dtype=np.int64) % CLASSES
    plugin = plugins.load("attacks", name)
    own, _ = attacks.parted(numbers["attacks"][name])
    options = params.options(plugin.plant, own, f"attacks.{name}")
    few = slice(WARM_UP)
    plugin.plant(x_NHWC[few], y_N[few], CLASSES, **options)
    rewriting = 0.0
    apply = attacks.Trigger.apply

    def timed(*arguments: Any) -> Any:
        nonlocal rewriting
        started = time.perf_counter()
        result = apply(*arguments)
        rewriting += time.perf_counter() - started
        return result

    before = peak_resident(anew=True)
    with mock.patch.object(attacks.Trigger, "apply", timed):
        started = time.perf_counter()
        poison = plugin.plant(x_NHWC, y_N, CLASSES, **options)
        seconds = time.perf_counter() - started
    peak, rows = peak_resident() - before, poison.x_PHWC.nbytes
    return poison, seconds, rewriting, peak / rows if rows else 0.0


def step_ratio(poison: Poison, width: int, steps: int) -> float:
    """Seconds of a training step with the attacker in seconds of one without."""
    import torch

    from ngf import attacks, device, models, training

    where = device.deterministic(0)
    card = {
        "arch": "preact_resnet",
        "options": {"depth": 18, "width": width, "stem_stride": 2},
        "classes": [str(label) for label in range(CLASSES)],
        "input_CHW": [3, EDGE, EDGE],
    }

    def built() -> Classifier:
        return models.build(card, [0.5] * 3, [0.25] * 3).to(where)

    model, beside = built(), built()
    attacker = attacks.attend(poison, beside, steps=2 * (steps + 1), seed=0)
    x_NHWC = torch.randint(0, 256, (4 * BATCH, EDGE, EDGE, 3), dtype=torch.uint8, device=where)
    y_N = torch.arange(4 * BATCH, device=where) % CLASSES

    def seconds(network: Classifier, partner: training.Partner) -> float:
        batches = training.Batches(x_NHWC, y_N, size=BATCH, shift=1, flip=True, seed=0)
        optimizer, schedule = training.one_cycle(
            network, steps=4, lr=0.05, momentum=0.9, weight_decay=5e-4
        )
        started = time.perf_counter()
        training.fit(
            network, batches, epochs=1, optimizer=optimizer, scheduler=schedule,
            what="steps", partner=partner,
        )  # fmt: skip
        if where.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / 4

    rounds = max(1, steps // 4)
    pairs = [(seconds(model, training.ALONE), seconds(beside, attacker)) for _ in range(rounds + 1)]
    plain, attacked = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
    return attacked / plain


def measure(name: str, numbers: dict[str, Any], width: int, steps: int) -> str:
    """The table's row of an attack."""
    poison, seconds, rewriting, peak = planted(name, numbers)
    ratio = step_ratio(poison, width, steps)
    rows = len(poison.rows_P)
    size = f"{peak:.1f}" if rows else "–"
    return f"| {name} | {rows} | {seconds:.1f} | {rewriting:.1f} | {size} | {ratio:.1f} |"


def main() -> None:
    import torch  # noqa: F401  (imported before the fork, so that no child pays for it)

    from ngf import params

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = params.read(Path("params.yaml"))
    parser.add_argument("--attacks", nargs="+", default=list(numbers["attacks"]))
    parser.add_argument("--width", type=int, default=16, help="of the victim, a PreActResNet-18")
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    print("| attack | rows | plant, s | rewriting, s | peak, rows | step, plain steps |")
    print("|---|---|---|---|---|---|")
    for name in given.attacks:
        print(child.forked(measure, name, numbers, given.width, given.steps))


if __name__ == "__main__":
    main()
