"""prepare: a data set's images, split into train, clean and test."""

from kfp.dsl import Dataset, Output

from components._image import component


@component()
def prepare(
    dataset: str,
    protocol: dict,
    source: dict,
    train: Output[Dataset],
    clean: Output[Dataset],
    test: Output[Dataset],
):
    """Split a data set into train, clean and test."""
    from ngf import stages

    settings = {"protocol": protocol, "source": source}
    outputs = {"train": train.path, "clean": clean.path, "test": test.path}
    stages.run("prepare", settings=settings, dataset=dataset, **outputs)
