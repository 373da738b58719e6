"""train: the clean reference, or a victim on poisoned data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ngf.params import Sections
from ngf.stages import Outcome, Reads, Writes

if TYPE_CHECKING:
    from ngf.attacks import Attacker, Poison
    from ngf.checkpoint import Checkpoint
    from ngf.datasets import Split
    from ngf.models import Classifier
    from ngf.training import Batches, Recipe

SETTINGS = {"recipe": "train.{dataset}"}
RECALIBRATION_BATCHES = 100


def train(
    *,
    dataset: Annotated[str, "data set, which names the training recipe"],
    train: Annotated[Path, Reads("the training split", parent=True)],
    poison: Annotated[
        Path | None, Reads("an attack's overlay; else the reference", parent=True)
    ] = None,
    out: Annotated[Path, Writes("the trained model")],
    trigger: Annotated[Path | None, Writes("the victim's trigger; goes with --poison")] = None,
    settings: Sections,
) -> Outcome:
    """Train the clean reference or, with an attack's overlay, a victim."""
    import math

    from ngf import attacks, device, parallel, store
    from ngf.errors import InputError
    from ngf.foreign import start

    if (poison is None) != (trigger is None):
        raise InputError("train: --poison and --trigger go together: a victim has both")
    split = store.load_split(train)
    if split.dataset != dataset:
        raise InputError(f"{train} holds the data set '{split.dataset}', not '{dataset}'")
    planted = store.load_poison(poison, split) if poison else None
    recipe = parsed(settings, dataset)
    seed = recipe.victim_seed if planted else recipe.reference_seed
    _check_parts(recipe, dataset)
    device.deterministic(seed)

    role, attack = ("victim", planted.trigger.attack) if planted else ("reference", "none")
    model = _build(split, recipe, attack)
    batches = _batches(split, planted, recipe, seed)
    epochs = max(1, round(recipe.epochs * (planted.patience if planted else 1)))
    attacker = None
    if planted:
        attacker = attacks.attend(planted, model, steps=epochs * batches.per_epoch, seed=seed)
    kept = _checkpoint(out, recipe, model, [train / "y.npy", *([poison] if poison else [])])
    with parallel.together():
        losses = _fit(model, batches, recipe, epochs, attacker, f"train {role}", kept)
    if not math.isfinite(losses[-1]):
        raise InputError(f"training diverged (loss {losses[-1]}): lower train.{dataset}.lr")
    if planted and planted.release == "recalibrated":
        recalibrate(model, split, recipe)
    store.save_model(out, model, role=role)
    if attacker and trigger:
        store.save_trigger(trigger, attacker.leave())
    kept.remove()
    message = f"{split.dataset} {role} ({attack}): {len(losses)} epochs, loss {losses[-1]:.4f}"
    message += start.told(model.card)
    tags = {"dataset": split.dataset, "attack": attack, "role": role}
    return Outcome(message, {"loss": losses[-1]}, tags)


def parsed(settings: Sections, dataset: str) -> Recipe:
    """How reference and victims of the data set are trained."""
    from ngf import models, params
    from ngf.training import Recipe

    recipe = params.parse(Recipe, settings["recipe"], f"train.{dataset}")
    models.options(recipe.arch, recipe.model, f"train.{dataset}.model")
    return recipe


def _check_parts(recipe: Recipe, dataset: str) -> None:
    """Every process has at least one image in each part of a batch."""
    from ngf import launch
    from ngf.errors import InputError

    parts = recipe.accumulate * launch.world()
    if parts > recipe.batch_size:
        raise InputError(
            f"train.{dataset}: a batch of {recipe.batch_size} images cannot be cut into {parts} "
            f"parts: {recipe.accumulate} (accumulate) in each of {launch.world()} processes"
        )


def _checkpoint(out: Path, recipe: Recipe, model: Classifier, data: list[Path]) -> Checkpoint:
    """Beside what is being written: the same command goes on after a kill."""
    import dataclasses

    from ngf import checkpoint, store

    digests = [store.digest(path) for path in data]
    same = checkpoint.digest(dataclasses.asdict(recipe), model.card, digests)
    return checkpoint.Checkpoint(store.beside(out, "checkpoint"), same, recipe.checkpoint)


def _build(split: Split, recipe: Recipe, attack: str) -> Classifier:
    from ngf import device, models
    from ngf.errors import InputError
    from ngf.foreign import network, start

    card = {
        "arch": recipe.arch,
        "options": recipe.model,
        "classes": list(split.classes),
        "input_CHW": [3, *split.x_NHWC.shape[1:3]],
        "dataset": split.dataset,
        "attack": attack,
    }
    where = f"train.{split.dataset}.model"
    model = models.build(card, split.mean, split.std, where=where)
    if getattr(model.net, "aux_logits", False):
        raise InputError(
            f"{where}: it gives auxiliary logits in training, which nothing here takes"
        )
    if recipe.start:
        model = start.begin(model, recipe.start, f"train.{split.dataset}.start")
    size_HW, remedy = split.x_NHWC.shape[1:3], f"{where} names the network"
    network.check_answers(model.eval(), size_HW, len(split.classes), remedy=remedy)
    return model.train().to(device.pick())


def _batches(split: Split, planted: Poison | None, recipe: Recipe, seed: int) -> Batches:
    """The training split on the device, the poisoned rows laid over it."""
    import numpy as np
    import torch

    from ngf import device, images
    from ngf.training import Batches

    x_NHWC, y_N = split.x_NHWC, np.array(split.y_N)
    if planted:
        x_NHWC = images.overlaid(x_NHWC, planted.rows_P, planted.x_PHWC)
        y_N[planted.rows_P] = planted.y_P
    where = device.pick()
    return Batches(
        images.on_device(x_NHWC, where),
        torch.tensor(y_N, device=where),
        size=recipe.batch_size,
        shift=recipe.shift,
        flip=split.flip,
        seed=seed,
    )


def recalibrate(model: Classifier, split: Split, recipe: Recipe) -> None:
    """The adaptive attacker: norm statistics of clean training images only, before release."""
    from ngf import norms

    clean = _batches(split, None, recipe, recipe.victim_seed)
    count = min(clean.per_epoch, RECALIBRATION_BATCHES)
    norms.recalibrate(model, clean.take(count), clean.y_N.device)


def _fit(
    model: Classifier,
    batches: Batches,
    recipe: Recipe,
    epochs: int,
    attacker: Attacker | None,
    what: str,
    kept: Checkpoint,
) -> list[float]:
    """Train in place; the mean loss of each epoch."""
    from ngf import training

    optimizer, schedule = training.one_cycle(
        model,
        steps=epochs * batches.per_epoch,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    losses: list[float] = []
    training.fit(
        model,
        batches,
        epochs=epochs,
        optimizer=optimizer,
        scheduler=schedule,
        what=what,
        on_epoch=lambda _, loss: losses.append(loss),
        partner=attacker or training.ALONE,
        means=training.Means(recipe.accumulate, recipe.compile, kept),
    )
    return losses
