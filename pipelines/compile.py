"""Write one Kubeflow package a dataset-attack pair: `python -m pipelines.compile`."""

import argparse
from pathlib import Path

from ngf import params


def compile_pair(dataset: str, attack: str, numbers: params.Settings, out: Path) -> Path:
    """Write `out`/ngf-<dataset>-<attack>.yaml; the same numbers give the same bytes."""
    from kfp import compiler

    from pipelines.purification import build

    needed = ["prepare", "evaluate", "promote", "cluster", f"attacks.{attack}"]
    needed += [f"{section}.{dataset}" for section in ("datasets", "train")]
    needed += [f"defenses.{defense}" for defense in numbers["grid"]["defenses"]]
    for path in needed:
        params.section(numbers, path, Path("params.yaml"))
    out.mkdir(parents=True, exist_ok=True)
    package = out / f"ngf-{dataset}-{attack}.yaml"
    compiler.Compiler().compile(build(dataset, attack, numbers), str(package))
    _drop_comments(package)
    return package


def _drop_comments(package: Path) -> None:
    """KFP repeats the inputs in comments, in an order that changes from run to run."""
    lines = package.read_text().splitlines(keepends=True)
    package.write_text("".join(line for line in lines if not line.startswith("#")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, default=Path("build/pipelines"))
    arguments = parser.parse_args()
    numbers = params.read(arguments.params)
    for dataset in numbers["grid"]["datasets"]:
        for attack in numbers["grid"]["attacks"]:
            print(compile_pair(dataset, attack, numbers, arguments.out))


if __name__ == "__main__":
    from ngf.cli import one_line_for_bad_input

    with one_line_for_bad_input():
        main()
