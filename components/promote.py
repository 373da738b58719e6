"""promote: a purified model into the MLflow registry, with the gate's verdict."""

from kfp.dsl import Artifact, Input, Model, Output

from components._component import component


@component()
def promote(model: Input[Model], evaluation: Input[Artifact], gate: dict, out: Output[Artifact]):
    """Register a purified model; it becomes champion where it passes the gate."""
    from ngf import stages

    paths = {"model": model.path, "evaluation": evaluation.path, "out": out.path}
    stages.run("promote", settings={"gate": gate}, **paths)
