"""Run one pair through Kubeflow's own local runner: `python -m pipelines.local`.

Its metrics.json files must equal those that `dvc repro` wrote, byte for byte; where the grid has
been run, that is checked.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from ngf import params
from ngf.errors import InputError

OWN = ".kfp-local"  # marks a folder of these runs


def run_pair(
    dataset: str,
    attack: str,
    numbers: params.Settings,
    root: Path,
    runner: Any = None,
    image: str = "localhost/ngf-python",
) -> dict[str, bytes]:
    """Run the pair's pipeline below `root`. Returns {defense: metrics.json}.

    `root` must be new, empty, or an earlier run's, which is deleted.

    Args:
        runner: of `kfp.local`; by default tasks are processes of this environment, without image.

    Raises:
        InputError: no such data set or attack, or `root` holds something else.
        RuntimeError: a task failed; KFP's message names it and its traceback is printed above.
    """
    import json

    from kfp import local

    from pipelines.purification import build

    # This machine is the task's own.
    pipeline = build(dataset, attack, numbers, image, shared=False)
    _emptied(root)
    # The stages are installed here: a task needs no virtual environment of its own.
    runner = runner or local.SubprocessRunner(use_venv=False)
    local.init(runner, pipeline_root=str(root))
    pipeline()
    written = [file.read_bytes() for file in sorted(root.rglob("out/metrics.json"))]
    return {json.loads(content)["defense"]: content for content in written}


def _emptied(root: Path) -> None:
    """The folder, new and marked as one that may be deleted."""
    if root.exists() and not (root / OWN).is_file() and (root.is_file() or any(root.iterdir())):
        raise InputError(f"--root {root} holds something else: name a new or an empty folder")
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    (root / OWN).touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--dataset", default="signs")
    parser.add_argument("--attack", default="badnets")
    parser.add_argument("--root", type=Path, default=Path("build/kfp-local"))
    arguments = parser.parse_args()
    numbers = params.read(arguments.params)
    measured = run_pair(arguments.dataset, arguments.attack, numbers, arguments.root)
    differ = not measured
    for defense, content in sorted(measured.items()):
        twin = Path("runs", arguments.dataset, arguments.attack, defense, "evaluation/metrics.json")
        if not twin.exists():
            print(f"{defense}: measured; dvc has no {twin} to compare with")
            continue
        same = twin.read_bytes() == content
        differ |= not same
        print(f"{defense}: metrics.json {'equals' if same else 'DIFFERS FROM'} {twin}")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    from ngf.cli import one_line_for_bad_input

    with one_line_for_bad_input():
        main()
