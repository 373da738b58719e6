"""train: the clean reference, and a victim on poisoned data. One stage, two sets of artifacts."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components._component import component


@component()
def train_reference(dataset: str, train: Input[Dataset], recipe: dict, out: Output[Model]):
    """Train the clean reference."""
    from ngf import stages

    settings = {"recipe": recipe}
    stages.run("train", settings=settings, dataset=dataset, train=train.path, out=out.path)


@component()
def train_victim(
    dataset: str,
    train: Input[Dataset],
    poison: Input[Artifact],
    recipe: dict,
    out: Output[Model],
    trigger: Output[Artifact],
):
    """Train a victim on poisoned data."""
    from ngf import stages

    paths = {"train": train.path, "poison": poison.path, "out": out.path, "trigger": trigger.path}
    stages.run("train", settings={"recipe": recipe}, dataset=dataset, **paths)
