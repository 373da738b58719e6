"""poison: the rows of the training split that an attacker rewrites, and the trigger."""

from kfp.dsl import Artifact, Dataset, Input, Output

from components._component import component


@component()
def poison(train: Input[Dataset], attack: str, options: dict, out: Output[Artifact]):
    """Plant an attack in the training split."""
    from ngf import stages

    settings = {"options": options}
    stages.run("poison", settings=settings, train=train.path, attack=attack, out=out.path)
