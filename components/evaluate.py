"""evaluate: ACC, ASR and RA of a model, beside its victim and the clean reference."""

from kfp.dsl import (
    HTML,
    Artifact,
    ClassificationMetrics,
    Dataset,
    Input,
    Markdown,
    Metrics,
    Model,
    Output,
)

from components._component import component


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
    confusion: Output[ClassificationMetrics],
    summary: Output[Markdown],
    report: Output[HTML],
):
    """Measure a model on the test split, clean and triggered."""
    import json
    from pathlib import Path

    from ngf import report as shown
    from ngf import stages

    reads = {"model": model, "victim": victim, "reference": reference}
    paths = {name: artifact.path for name, artifact in reads.items()}
    paths |= {"trigger": trigger.path, "test": test.path, "out": out.path}
    outcome = stages.run("evaluate", settings={"thresholds": thresholds}, **paths)
    for name, value in outcome.metrics.items():
        metrics.log_metric(name, value)
    classes, counts = shown.confusion(Path(out.path))
    if classes:
        confusion.log_confusion_matrix(classes, counts)
    Path(summary.path).write_text(shown.evaluation_markdown(Path(out.path)))
    Path(report.path).write_text(shown.evaluation_html(Path(out.path)))
    # KFP takes a metrics artifact without a file for one that is lost, and never caches the task.
    for one in (metrics, confusion):
        Path(one.path).write_text(json.dumps(one.metadata))
