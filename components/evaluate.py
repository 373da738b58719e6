"""evaluate: ACC, ASR and RA of a model, beside its victim and the clean reference."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components._image import component


@component()
def evaluate(
    model: Input[Model],
    victim: Input[Model],
    reference: Input[Model],
    trigger: Input[Artifact],
    test: Input[Dataset],
    thresholds: dict,
    out: Output[Artifact],
    metrics: Output[Metrics],
):
    """Measure a model on the test split, clean and triggered."""
    import json
    from pathlib import Path

    from ngf import stages

    reads = {"model": model, "victim": victim, "reference": reference}
    paths = {name: artifact.path for name, artifact in reads.items()}
    paths |= {"trigger": trigger.path, "test": test.path, "out": out.path}
    outcome = stages.run("evaluate", settings={"thresholds": thresholds}, **paths)
    for name, value in outcome.metrics.items():
        metrics.log_metric(name, value)
    # KFP takes a metrics artifact without a file for one that is lost, and never caches the task.
    Path(metrics.path).write_text(json.dumps(outcome.metrics))
