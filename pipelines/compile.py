"""Write one Kubeflow package a dataset-attack pair: `python -m pipelines.compile`."""

import argparse
import hashlib
import tempfile
from pathlib import Path
from typing import Any

from ngf import params
from pipelines.cluster import Cluster
from pipelines.image import DIRTY, image_of, revision


def compile_pair(dataset: str, attack: str, numbers: params.Settings, out: Path) -> Path:
    """Write `out`/ngf-<dataset>-<attack>.yaml; the same numbers give the same bytes."""
    from kfp import compiler

    for path in ("grid", "cluster"):
        params.section(numbers, path, Path("params.yaml"))
    pipeline = _pipeline(dataset, attack, numbers)
    out.mkdir(parents=True, exist_ok=True)
    package = out / f"ngf-{dataset}-{attack}.yaml"
    compiler.Compiler().compile(pipeline, str(package))
    _drop_comments(package)
    return package


def _drop_comments(package: Path) -> None:
    """KFP repeats the inputs in comments, in an order that changes from run to run."""
    lines = package.read_text().splitlines(keepends=True)
    package.write_text("".join(line for line in lines if not line.startswith("#")))


def manifest_pair(
    dataset: str, attack: str, numbers: params.Settings, out: Path
) -> tuple[Path, str]:
    """Write the pair as Kubernetes' own Pipeline and PipelineVersion, for GitOps.

    Returns the file and the version's name, which ends in the digest of the package that
    `compile_pair` writes: other numbers are another version.
    """
    from kfp import compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    with tempfile.TemporaryDirectory() as folder:
        package = compile_pair(dataset, attack, numbers, Path(folder))
        version = f"{package.stem}-{hashlib.sha256(package.read_bytes()).hexdigest()[:8]}"
        file = out / package.name
    out.mkdir(parents=True, exist_ok=True)
    options = KubernetesManifestOptions(
        pipeline_name=file.stem,
        pipeline_version_name=version,
        namespace=Cluster.of(numbers["cluster"]).namespace,
        include_pipeline_manifest=True,
    )
    compiler.Compiler().compile(
        _pipeline(dataset, attack, numbers),
        str(file),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=options,
    )
    return file, version


def _pipeline(dataset: str, attack: str, numbers: params.Settings) -> Any:
    from pipelines.purification import build

    cluster = Cluster.of(numbers["cluster"])
    tracked = None
    if cluster.raw.repository:  # what is not committed, git cannot give; preflight says so
        tracked = revision("cluster.raw.repository").removesuffix(DIRTY)
    return build(dataset, attack, numbers, image_of(cluster), tracked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, default=Path("build/pipelines"))
    parser.add_argument(
        "--manifests", type=Path, help="also write Kubernetes' own resources there, for GitOps"
    )
    arguments = parser.parse_args()
    numbers = params.read(arguments.params)
    for dataset in numbers["grid"]["datasets"]:
        for attack in numbers["grid"]["attacks"]:
            print(compile_pair(dataset, attack, numbers, arguments.out))
            if arguments.manifests:
                print(manifest_pair(dataset, attack, numbers, arguments.manifests)[0])


if __name__ == "__main__":
    from ngf.cli import one_line_for_bad_input

    with one_line_for_bad_input():
        main()
