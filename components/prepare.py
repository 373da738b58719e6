"""prepare: a data set's images, split into train, clean and test."""

from kfp.dsl import Dataset, Output

from components._component import component


@component()
def prepare(
    dataset: str,
    protocol: dict,
    source: dict,
    raw: dict,
    train: Output[Dataset],
    clean: Output[Dataset],
    test: Output[Dataset],
):
    """Split a data set into train, clean and test; raw images are pulled by DVC where asked."""
    from ngf import stages
    from ngf.raw import pull

    if raw and source.get("root"):
        pull(raw["repository"], raw["revision"], source["root"])
    settings = {"protocol": protocol, "source": source}
    outputs = {"train": train.path, "clean": clean.path, "test": test.path}
    stages.run("prepare", settings=settings, dataset=dataset, **outputs)
