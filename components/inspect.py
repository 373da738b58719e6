"""inspect: what purification did to a model: curvature, loss surface, features, movement."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Model, Output

from components._component import component


@component()
def inspect(
    model: Input[Model],
    victim: Input[Model],
    reference: Input[Model],
    trigger: Input[Artifact],
    train: Input[Dataset],
    test: Input[Dataset],
    plan: dict,
    out: Output[Artifact],
    metrics: Output[Metrics],
    summary: Output[Markdown],
    report: Output[HTML],
):
    """Measure how sharp, how far and where: before purification, after, and a clean reference."""
    import json
    from pathlib import Path

    from ngf import report as shown
    from ngf import stages

    reads = {"model": model, "victim": victim, "reference": reference}
    reads |= {"trigger": trigger, "train": train, "test": test}
    paths = {name: artifact.path for name, artifact in reads.items()}
    outcome = stages.run("inspect", settings={"plan": plan}, out=out.path, **paths)
    for name, value in outcome.metrics.items():
        metrics.log_metric(name, value)
    Path(summary.path).write_text(shown.inspection_markdown(Path(out.path)))
    Path(report.path).write_text(shown.inspection_html(Path(out.path)))
    # KFP takes a metrics artifact without a file for one that is lost, and never caches the task.
    Path(metrics.path).write_text(json.dumps(metrics.metadata))
