"""promote: a purified model into the MLflow registry, with the gate's verdict."""

from kfp.dsl import Artifact, Input, Model, Output

from components._component import component


@component()
def promote(
    model: Input[Model],
    evaluation: Input[Artifact],
    inspection: Input[Artifact],
    gate: dict,
    out: Output[Artifact],
):
    """Register a purified model: candidate where it passes, champion where it is better."""
    from ngf import stages

    reads = {"model": model, "evaluation": evaluation, "inspection": inspection}
    paths = {name: artifact.path for name, artifact in reads.items()}
    stages.run("promote", settings={"gate": gate}, out=out.path, **paths)
