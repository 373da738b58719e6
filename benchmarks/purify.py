"""How fast purification is: NGF beside other defenses, on one victim.

    python -m benchmarks.purify --victim runs/signs/badnets/victim --clean runs/signs/clean

Rows take turns (a b c d e, a b c d e, ...), so that a machine that slows down slows all of them;
the table shows medians. Options are those of params.yaml. The floor is one forward pass over
`defenses.ngf.views` augmented copies of the clean split: nothing that looks at every view can be
faster.

Every run is a child process of its own, forked from a parent that has imported torch and computed
nothing. It loads the victim, warms up by one small training step on a copy, and is timed from
there: loading, kernel selection and a GPU's start are not counted. `peak_mb` is CUDA's peak of
allocated memory where there is CUDA. On the CPU it is the child's peak resident set less what it
inherited at the fork: the victim, the clean split and the parts of torch's libraries that the run
touches are in it, so compare it with the floor's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import child
from ngf.bench.memory import peak_resident

if TYPE_CHECKING:
    import torch

    from ngf.defenses import Clean
    from ngf.models import Classifier

FLOOR, OURS = "floor", "ngf"
BESIDE = ("ngf_strict", "finetune", "ft_sam", "ibau", "anp")
BATCH = 256  # images of a forward pass, as in the defenses
FEW = 16  # images of the warm-up, whose memory must stay below any row's


@dataclass(frozen=True)
class Run:
    """One purification: seconds, parameters trained, gradient steps, peak memory in MB (2^20)."""

    seconds: float
    tuned: int
    steps: int
    peak_mb: float
    device: str


def measure(row: str, victim: Path, clean: Path, defenses: dict[str, Any]) -> Run:
    """One run, in this process, with a freshly loaded victim."""
    import torch

    from ngf import device, store
    from ngf.defenses import Clean

    inherited = peak_resident(anew=True)
    where = device.deterministic(0)
    model, split = store.load_model(victim).to(where), store.load_split(clean)
    images = Clean.of(split, where)
    _warm_up(model, images)
    _synchronise(where)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    tuned, steps = _run(row, model, images, defenses)
    _synchronise(where)
    seconds = time.perf_counter() - started
    if where.type == "cuda":
        peak, name = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
    else:
        peak, name = peak_resident() - inherited, "cpu"
    return Run(seconds, tuned, steps, peak / 2**20, name)


def _run(row: str, model: Classifier, images: Clean, defenses: dict[str, Any]) -> tuple[int, int]:
    """(parameters tuned, gradient steps)."""
    from ngf import params, plugins

    if row == FLOOR:
        _look(model, images, defenses["ngf"])
        return 0, 0
    plugin = plugins.load("defenses", row)
    options = params.options(plugin.purify, defenses[row], f"defenses.{row}")
    purified = plugin.purify(model, images, **options)
    return purified.tuned, purified.steps


def _look(model: Classifier, images: Clean, options: dict[str, Any]) -> None:
    """One forward pass over the views."""
    import torch

    from ngf.device import autocast
    from ngf.training import augment, pixels

    generator = torch.Generator(images.y_N.device).manual_seed(options["seed"])
    with torch.no_grad(), autocast(images.y_N.device):
        for _ in range(options["views"]):
            x_NHWC = augment(
                images.x_NHWC, shift=options["shift"], flip=images.flip, generator=generator
            )
            for x_BHWC in x_NHWC.split(BATCH):
                model(pixels(x_BHWC))


def _warm_up(model: Classifier, images: Clean) -> None:
    """One small training step on a copy: the first of a process is slow."""
    import copy

    from torch.nn.functional import cross_entropy

    from ngf.device import autocast
    from ngf.training import pixels

    twin = copy.deepcopy(model)
    with autocast(images.y_N.device):
        logits_NC = twin(pixels(images.x_NHWC[:FEW]))
    cross_entropy(logits_NC.float(), images.y_N[:FEW]).backward()


def _synchronise(where: torch.device) -> None:
    import torch

    if where.type == "cuda":
        torch.cuda.synchronize()


# Tables ---------------------------------------------------------------------------------------


def summary(runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """One dictionary a row: medians, and ratios of medians."""
    seconds = {row: statistics.median(run.seconds for run in of) for row, of in runs.items()}
    return [
        {
            "row": row,
            "seconds": seconds[row],
            "over_floor": seconds[row] / seconds[FLOOR],
            "over_ngf": seconds[row] / seconds[OURS],
            "parameters_tuned": of[0].tuned,
            "steps": of[0].steps,
            "peak_mb": statistics.median(run.peak_mb for run in of),
            "all_seconds": [run.seconds for run in of],
        }
        for row, of in runs.items()
    ]


def hardware(device: str) -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    import os

    import torch

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device": device,
        "torch": torch.__version__,
    }


def _cpu_model() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def table(rows: list[dict[str, Any]]) -> str:
    """Text for people."""
    lines = [
        f"{'':<12}{'seconds':>10}{'x floor':>10}{'x ngf':>10}"
        f"{'tuned':>10}{'steps':>8}{'peak MB':>10}"
    ]
    lines += [
        f"{r['row']:<12}{r['seconds']:>10.2f}{r['over_floor']:>10.1f}{r['over_ngf']:>10.1f}"
        f"{r['parameters_tuned']:>10,}{r['steps']:>8}{r['peak_mb']:>10.0f}"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--victim", type=Path, default=Path("runs/signs/badnets/victim"))
    parser.add_argument("--clean", type=Path, default=Path("runs/signs/clean"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--beside", nargs="+", metavar="DEFENSE", default=BESIDE)
    parser.add_argument("--json", type=Path, help="file for the rows and the hardware")
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error("--repeats must be at least 1")

    from ngf import params, plugins, store

    defenses = params.read(Path("params.yaml"))["defenses"]
    for name in given.beside:
        params.one_of(tuple(defenses), beside=name)
    purifiers = (OURS, *given.beside)
    for row in purifiers:  # children inherit what is imported here
        plugins.load("defenses", row)
    images = len(store.load_split(given.clean).y_N)
    runs: dict[str, list[Run]] = {row: [] for row in (FLOOR, *purifiers)}
    for _ in range(given.repeats):
        for row in runs:
            runs[row].append(child.forked(measure, row, given.victim, given.clean, defenses))
    rows, machine = summary(runs), hardware(runs[FLOOR][0].device)
    print(
        f"{images} clean images, medians of {given.repeats}; {machine['device']}, "
        f"{machine['threads']} threads, {machine['cpu']}, torch {machine['torch']}"
    )
    print(table(rows))
    if given.json:
        options = {row: defenses[row] for row in purifiers}
        found = {
            "hardware": machine,
            "images": images,
            "repeats": given.repeats,
            "options": options,
            "rows": rows,
        }
        store.write_json(given.json, found)


if __name__ == "__main__":
    main()
