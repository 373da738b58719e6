"""Purify a model that somebody else trained, with a folder of clean images and no attack known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ngf import params
from ngf.errors import InputError
from ngf.stages import Outcome

if TYPE_CHECKING:
    from ngf.datasets import Split
    from ngf.foreign.weights import Checkpoint
    from ngf.models import Classifier
    from ngf.purification import Protocol, Purification

MEASURED = 128  # held-out images whose loss is looked at for its curvature
AT_ONCE = 2**18  # and their pixels, at most: twenty products with the Hessian take long on a CPU


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a person says of their model; None: what the model's card says, or an error.

    arch: a torchvision or timm name, or `package.module:factory`. head: the logits' linear layer.
    mean, std: of the normalisation, three numbers for pixels in [0, 1]. classes: names of the
    folders in the order of the outputs; None: by the alphabet. size: images are resized to it;
    None: they all have one. flip: whether a mirrored image keeps its class. least_acc: ACC before,
    as a fraction, from which on the work starts; None: see `ngf.foreign.said.acc_before`.
    """

    model: str
    clean: Path
    arch: str | None = None
    head: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    classes: list[str] | None = None
    size: int | None = None
    flip: bool = False
    least_acc: float | None = None


def purify(
    given: Given,
    *,
    defense: str,
    options: Mapping[str, Any],
    protocol: Mapping[str, Any],
    out: Path,
    report: Path | None,
    say: Callable[[str], None],
) -> Outcome:
    """Write the purified weights and a card into `out`, whole or not at all.

    Args:
        options: the defense's section. protocol: section `purify`; see `ngf.purification`.
        report: JSON with all measures, beside the one in `out`. say: is told what was taken to be
            the case.
    """
    from ngf import store
    from ngf.foreign import said, weights
    from ngf.purification import Protocol, purification

    if given.least_acc is not None:
        params.within("--least-acc", given.least_acc, 0, 1)
    checkpoint = weights.read(given.model)
    _check_place(out, checkpoint.file, given.clean)
    _check_report(report)
    places = {"out": out, **({"report": report} if report else {})}
    with store.whole(places, listed=True) as partial:  # first, so that a bad place costs no time
        checked = params.parse(Protocol, protocol, "purify")
        split = images(given, checkpoint.card)
        victim, checkpoint = _victim(given, checkpoint, split)
        before, kept_K = victim(), _kept(split, checked)
        for line in said.echo(given.arch or "", before, split, kept_K, checkpoint.left):
            say(line)
        for line in said.skipped(before, defense):
            say(line)
        acc = _accuracy(before, split)
        for line in said.acc_before(acc, split, given.least_acc):
            say(line)
        options = _fitted(options, split.x_NHWC.shape[1])
        done = purification(victim, split, defense=defense, options=options, protocol=checked)
        _as_stored(done.model, checkpoint)
        numbers = {"clean_acc_before": acc, **done.numbers, **measures(before, split, done)}
        numbers["finding"] = said.finding(numbers, done.model.card["classes"])
        folder = partial["out"]
        folder.mkdir()
        file = checkpoint.write(folder, done.model.net.state_dict())
        store.write_json(folder / "card.json", {**done.model.card, "defense": defense})
        store.write_json(folder / store.REPORT, {**numbers, store.LISTED: store.list_files(folder)})
        if report:
            store.write_json(partial["report"], numbers)
    message = said.summary(out / file.name, numbers, done.warning)
    return Outcome(message, numbers, {"defense": defense})


def _kept(split: Split, protocol: Protocol) -> np.ndarray:
    """How many images of each class the defense gets, [K]."""
    from ngf import holdout

    labels, share = replace(split, x_NHWC=split.y_N), protocol.holdout  # no image is copied
    counts_K = np.bincount(split.y_N, minlength=len(split.classes))
    try:
        kept = holdout.divide(labels, share, protocol.seed)[0] if share else labels
    except InputError as error:
        fewest = int(counts_K.min())
        if fewest < 2:
            raise
        raise InputError(
            f"--holdout {share:g} is less than one of the {fewest} images of class "
            f"'{split.classes[counts_K.argmin()]}': give more images, or --holdout "
            f"{math.ceil(100 / fewest) / 100:g}, or 0, which leaves none to check ACC"
        ) from error
    return np.bincount(kept.y_N, minlength=len(split.classes))


def _accuracy(model: Classifier, split: Split) -> float:
    from ngf import device, holdout
    from ngf.defenses import Clean

    where = device.deterministic(0)
    return holdout.accuracy(model.to(where), Clean.of(split, where))


def _check_place(out: Path, file: Path, clean: Path) -> None:
    """`InputError` where writing `out` would delete what is read, or a file, or make a class."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; it must be a folder, new or of this command")
    if clean.resolve() in out.resolve().parents:
        raise InputError(f"--out {out} lies among the clean images in {clean}")
    for path in (file, clean):
        if path.resolve().is_relative_to(out.resolve()):
            raise InputError(f"--out {out} holds {path}, which would be deleted")


def _check_report(report: Path | None) -> None:
    """`InputError` where writing it would delete something that is no report."""
    from ngf import store

    if report is None or not report.exists():
        return
    try:
        known = "parameters_tuned" in store.read_json(report)
    except InputError:
        known = False
    if not known:
        raise InputError(f"--report {report} is there and is no report; name a new file")


def _fitted(options: Mapping[str, Any], size: int) -> Mapping[str, Any]:
    """Views must not leave a small image."""
    shift = options.get("shift")
    return {**options, "shift": min(shift, size - 1)} if isinstance(shift, int) else options


def images(given: Given, card: Mapping[str, Any]) -> Split:
    """The folder's images as a split, in the model's order of classes; or a split as it is.

    What the person says holds; where the model is one that its card describes, the card does, and a
    word against it is an error.
    """
    from ngf import store
    from ngf.datasets import Split, folder

    if given.arch is None and card:
        _refuse(given, ("mean", "std", "classes", "head"), "the model's card says it")
    if (given.clean / "card.json").exists():
        _refuse(given, ("classes", "size", "flip"), f"the prepared split {given.clean} says it")
        split = store.load_split(given.clean)
        return replace(split, mean=given.mean or split.mean, std=given.std or split.std)
    mean, std = given.mean or card.get("mean"), given.std or card.get("std")
    if not mean or not std:
        raise InputError(
            "how are images normalised? give --mean and --std, three numbers each for pixels in "
            "[0, 1]: 0.485,0.456,0.406 and 0.229,0.224,0.225 are ImageNet's, 0,0,0 and 1,1,1 none"
        )
    names, found = given.classes or card.get("classes"), folder.class_folders(given.clean)
    if names is not None and set(names) != set(found):
        lacking, odd = sorted({*names} - {*found}), sorted({*found} - {*names})
        said = [f"no folder is called {', '.join(lacking[:5])}"] * bool(lacking)
        said += [f"no class {', '.join(odd[:5])}"] * bool(odd)
        raise InputError(
            f"{given.clean} has {len(found)} class folders and the model {len(names)} classes: "
            f"{' and '.join(said)}"
        )
    classes = tuple(names or found)
    size = given.size
    if size is None:
        size = card["input_CHW"][1] if card else folder.common_size(given.clean)
    params.at_least(8, size=size)
    x_NHWC, y_N = folder.read_images(given.clean, classes, size)
    return Split(x_NHWC, y_N, given.clean.name, classes, list(mean), list(std), given.flip)


def _refuse(given: Given, names: tuple[str, ...], why: str) -> None:
    said = [name for name in names if getattr(given, name) not in (None, False)]
    if said:
        raise InputError(f"--{said[0]} has no place here: {why}; leave it out")


def _victim(
    given: Given, checkpoint: Checkpoint, split: Split
) -> tuple[Callable[[], Classifier], Checkpoint]:
    """What builds the model anew at each call, some are changed; the weights by its names."""
    from ngf import models
    from ngf.foreign import network

    card = checkpoint.card
    n_classes, size_HW = len(split.classes), split.x_NHWC.shape[1:3]
    if given.arch is None and (not card or card["arch"] == network.FACTORY):
        raise InputError(
            "which network do the weights belong to? give --arch: a torchvision or timm name, or "
            "package.module:factory"
        )

    def by_name() -> tuple[Classifier, Checkpoint]:
        assert given.arch is not None
        net, said, named = network.assemble(given.arch, checkpoint, n_classes, given.head)
        said |= {"classes": list(split.classes), "input_CHW": [3, *size_HW]}
        said |= {"mean": split.mean, "std": split.std}
        moved: Any = net.float()  # torch's stubs know no memory format alone
        net = moved.to(memory_format=torch.channels_last)
        return models.Classifier(net, split.mean, split.std, said).eval(), named

    def by_card() -> tuple[Classifier, Checkpoint]:
        model = models.build(card, card["mean"], card["std"], where=f"{given.model}: options")
        named = checkpoint.called(model.net.state_dict().keys())
        network.load(model.net, named.tensors, given.model)
        return model.eval(), named

    build = by_name if given.arch else by_card
    model, named = build()
    remedy = "--size says what images are resized to"
    network.check_answers(model, size_HW, n_classes, remedy=remedy)
    return lambda: build()[0], named


def _as_stored(model: Classifier, checkpoint: Checkpoint) -> None:
    """Round the weights to the types of the file, so that what is measured is what is written."""
    state = model.net.state_dict()
    for name, old in checkpoint.tensors.items():
        state[name].copy_(state[name].to(old.dtype))
        if not state[name].isfinite().all():
            raise InputError(f"{name} does not fit into {old.dtype}, the type of the given weights")


def measures(victim: Classifier, split: Split, done: Purification) -> dict[str, Any]:
    """What can be said without a trigger: agreement, curvature, movement, batch norm's drift."""
    from ngf import metrics
    from ngf.foreign.drift import drift
    from ngf.training import pixels

    found: dict[str, Any] = {"movement": movement(victim, done.model)}
    found["batch_norm_drift"], found["batch_norm_chance"] = drift(victim, split.x_NHWC)
    if done.held is not None:
        where = next(done.model.parameters()).device
        x_NHWC = torch.tensor(done.held.x_NHWC, device=where)
        y_N = torch.tensor(done.held.y_N, device=where)
        both = {"victim": victim.to(where), "purified": done.model}
        answers = metrics.predict(both, x_NHWC)
        agree = (answers["victim"] == answers["purified"]).double().mean().item()
        found["agreement"] = agree
        # Images lie in the order of their classes: some of all, and no more than memory allows.
        most = min(MEASURED, max(1, AT_ONCE // x_NHWC[0, :, :, 0].numel()), len(y_N))
        some = torch.linspace(0, len(y_N) - 1, most, device=where).round().long()
        part = pixels(x_NHWC[some])
        found["sharpness_images"] = len(part)
        found |= {f"sharpness_{whose}": _sharpness(m, part, y_N[some]) for whose, m in both.items()}
    return found


def _sharpness(model: Classifier, x_NCHW: torch.Tensor, y_N: torch.Tensor) -> float | None:
    """None where an operation of the network has no second derivative, which may read as 0.

    Leaves the model's weights in torch's plain layout. Channels last, torch 2.13 writes beyond its
    memory on a CPU where it takes the weight gradient of a 1x1 convolution with a stride and few
    inputs, and the process dies.
    """
    from ngf.curvature.power import sharpness

    plain: Any = model  # torch's stubs know no memory format alone
    plain.to(memory_format=torch.contiguous_format)
    try:
        return sharpness(model, x_NCHW.contiguous(), y_N) or None
    except (RuntimeError, NotImplementedError):
        return None


def movement(victim: Classifier, purified: Classifier) -> dict[str, float | None]:
    """How far each parameter moved, in units of its norm; None where that was 0."""
    before = {name: p.detach().cpu() for name, p in victim.net.named_parameters()}
    found: dict[str, float | None] = {}
    for name, p in purified.net.named_parameters():
        length = before[name].norm().item()
        moved = (p.detach().cpu() - before[name]).norm().item()
        found[name] = round(moved / length, 6) if length else None
    return found
