"""Victims for the tables: trained once into runs/bench, kept out of git, re-made by one command.

    python -m benchmarks.victims --dataset signs --seeds 0 1 2

Those of `ngf bench`, and their variants: a changed poison rate or a recalibrated release. Several
can be under way at a time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ngf.bench import victims
from ngf.errors import InputError

ROOT = Path("runs/bench")
VARIANTS = (
    "benign",
    *(
        f"{a}{change}"
        for a in ("badnets", "blend", "sig")
        for change in ("", "-1%", "-recalibrated")
    ),
)


def main() -> None:
    from ngf import params

    numbers = params.read(Path("params.yaml"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, choices=sorted(numbers["datasets"]))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--norm", default="batch", choices=["batch", "group"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--raw", type=Path, help="where the data set's raw files lie")
    given = parser.parse_args()
    try:  # before anything is trained
        for variant in given.variants:
            victims.attack_options(variant, numbers)
    except InputError as error:
        parser.error(str(error))
    for seed in given.seeds:
        at = victims.place(
            numbers, given.dataset, seed=seed, norm=given.norm, root=given.root, raw=given.raw
        )
        victims.prepare(at)
        victims.reference(at)
        for variant in given.variants:
            started = time.perf_counter()
            victims.victim(at, variant)
            print(f"{at.variant(variant)}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
