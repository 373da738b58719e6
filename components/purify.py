"""purify: a victim and the defender's clean split in, a purified model out."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components._component import component


@component()
def purify(
    model: Input[Model],
    clean: Input[Dataset],
    defense: str,
    options: dict,
    protocol: dict,
    out: Output[Model],
    report: Output[Metrics],
):
    """Purify a model with one defense."""
    from ngf import stages

    paths = {"model": model.path, "clean": clean.path, "out": out.path, "report": report.path}
    settings = {"options": options, "protocol": protocol}
    outcome = stages.run("purify", settings=settings, defense=defense, **paths)
    for name, value in outcome.metrics.items():
        report.log_metric(name, value)
