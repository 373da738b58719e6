"""A folder with splits, a victim that knows its colours and a trigger; the stages on it."""

import functools
from pathlib import Path

import torch
from conftest import CLASSES, colour_split, tiny_model

from ngf import plugins, stages, store, training
from ngf.models import Classifier


@functools.cache
def victim() -> Classifier:
    """It names 9 of 10 images at least."""
    split, model = colour_split(192, seed=0), tiny_model()
    batches = training.Batches(
        torch.tensor(split.x_NHWC), torch.tensor(split.y_N), size=32, shift=0, flip=True, seed=0
    )
    optimizer, schedule = training.one_cycle(
        model, steps=8 * batches.per_epoch, lr=0.1, momentum=0.9, weight_decay=0
    )
    training.fit(model, batches, epochs=8, optimizer=optimizer, scheduler=schedule, what="victim")
    return model


class Workplace:
    """Runs `purify` and `evaluate` in a folder that holds what they read."""

    def __init__(self, folder: Path, numbers) -> None:
        self.folder, self.numbers = folder, numbers
        self.options = {**numbers["defenses"]["finetune"], "epochs": 4, "batch_size": 16}
        store.save_model(folder / "victim", victim())
        store.save_split(folder / "clean", colour_split(48, seed=1))
        store.save_split(folder / "test", colour_split(96, seed=2))
        split, plant = colour_split(24, seed=3), plugins.load("attacks", "badnets").plant
        poison = plant(split.x_NHWC, split.y_N, CLASSES, **numbers["attacks"]["badnets"])
        store.save_trigger(folder / "trigger", poison.trigger)

    def purify(self, defense="finetune", *, options=None, out="out", **protocol):
        settings = {
            "options": self.options if options is None else options,
            "protocol": {**self.numbers["purify"], **protocol},
        }
        return stages.run(
            "purify",
            settings=settings,
            model=self.folder / "victim",
            clean=self.folder / "clean",
            defense=defense,
            out=self.folder / out,
            report=self.folder / f"{out}.json",
        )

    def evaluate(self, model="out", *, trigger="trigger") -> dict:
        stages.run(
            "evaluate",
            settings={"thresholds": self.numbers["evaluate"]},
            model=self.folder / model,
            victim=self.folder / "victim",
            reference=self.folder / "victim",
            trigger=self.folder / trigger,
            test=self.folder / "test",
            out=self.folder / "evaluation",
        )
        return store.read_json(self.folder / "evaluation" / "metrics.json")

    def report(self, out="out") -> dict:
        return store.read_json(self.folder / f"{out}.json")
