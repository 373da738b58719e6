"""Purify a model that somebody else trained, with a folder of clean images and no attack known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngf import params
from ngf.errors import InputError
from ngf.stages import Outcome

if TYPE_CHECKING:
    from ngf.datasets import Split
    from ngf.foreign.weights import Checkpoint
    from ngf.models import Classifier
    from ngf.purification import Purification

MEASURED = 128  # held-out images whose loss is looked at for its curvature
ODD = 0.05  # batch norm's mean evidence above it is a warning sign


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a person says of their model; None: what the model's card says, or an error.

    arch: a torchvision or timm name, or `package.module:factory`. head: the logits' linear layer.
    mean, std: of the normalisation, three numbers for pixels in [0, 1]. classes: names of the
    folders in the order of the outputs; None: by the alphabet. size: images are resized to it;
    None: they all have one. flip: whether a mirrored image keeps its class.
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
        report: JSON with all measures; None: report.json in `out`. say: is told what was taken to
            be the case.
    """
    from ngf import store
    from ngf.foreign import weights
    from ngf.purification import Protocol, purification

    checkpoint = weights.read(given.model)
    split = images(given, checkpoint.card)
    victim = _victim(given, checkpoint, split)
    for line in _echo(given, victim().card, split):
        say(line)
    if "shift" in options:  # views must not leave a small image
        options = {**options, "shift": min(options["shift"], split.x_NHWC.shape[1] - 1)}
    checked = params.parse(Protocol, protocol, "purify")
    done = purification(victim, split, defense=defense, options=options, protocol=checked)
    numbers = {**done.numbers, **measures(victim(), done)}
    places = {"out": out, **({"report": report} if report else {})}
    with store.whole(places) as partial:
        folder = partial["out"]
        folder.mkdir()
        file = checkpoint.write(folder, done.model.net.state_dict())
        store.write_json(folder / "card.json", {**done.model.card, "defense": defense})
        store.write_json(partial.get("report", folder / "report.json"), numbers)
    return Outcome(_summary(out / file.name, numbers, done), numbers, {"defense": defense})


def images(given: Given, card: Mapping[str, Any]) -> Split:
    """The folder's images as a split, in the model's order of classes; or a split as it is."""
    from ngf import store
    from ngf.datasets import Split, folder

    if (given.clean / "card.json").exists():
        return store.load_split(given.clean)
    mean = given.mean or card.get("mean")
    std = given.std or card.get("std")
    if not mean or not std:
        raise InputError(
            "how are images normalised? give --mean and --std, three numbers each for pixels in "
            "[0, 1]: 0.485,0.456,0.406 and 0.229,0.224,0.225 are ImageNet's, 0,0,0 and 1,1,1 none"
        )
    names, found = given.classes or card.get("classes"), folder.class_folders(given.clean)
    if names is not None and set(names) != set(found):
        odd = sorted(set(names) ^ set(found))
        raise InputError(
            f"{given.clean} has {len(found)} class folders and the model {len(names)} classes: "
            f"they differ in {', '.join(odd[:5])}"
        )
    classes = tuple(names or found)
    stored = card.get("input_CHW")
    size = given.size or (stored[1] if stored else folder.common_size(given.clean))
    x_NHWC, y_N = folder.read_images(given.clean, classes, size)
    return Split(x_NHWC, y_N, given.clean.name, classes, list(mean), list(std), given.flip)


def _victim(given: Given, checkpoint: Checkpoint, split: Split) -> Callable[[], Classifier]:
    """Builds the model anew at each call: some are changed."""
    import torch

    from ngf import models, store
    from ngf.foreign import network

    def named() -> Classifier:
        assert given.arch is not None
        net, card = network.assemble(given.arch, checkpoint.tensors, len(split.classes), given.head)
        card |= {
            "classes": list(split.classes),
            "input_CHW": [3, *split.x_NHWC.shape[1:3]],
            "mean": split.mean,
            "std": split.std,
        }
        moved: Any = net.float()  # torch's stubs know no memory format alone
        net = moved.to(memory_format=torch.channels_last)
        return models.Classifier(net, split.mean, split.std, card).eval()

    if given.arch:
        return named
    if "arch" in checkpoint.card:
        return lambda: store.load_model(checkpoint.file.parent)
    raise InputError(
        "which network do the weights belong to? give --arch: a torchvision or timm name, or "
        "package.module:factory"
    )


def _echo(given: Given, card: Mapping[str, Any], split: Split) -> list[str]:
    """What was taken to be the case, for a person to check."""
    names = ", ".join(split.classes[:4]) + (", …" if len(split.classes) > 4 else "")
    options = {k: v for k, v in card["options"].items() if k != "name" and v}
    head = card.get("head") or "the last linear layer"
    size = "x".join(map(str, split.x_NHWC.shape[1:3]))
    return [
        f"network: {given.arch or card['arch']} {options or ''}; head: {head}",
        f"images: {len(split.y_N)} of {size}; {len(split.classes)} classes in this order: {names}",
        f"normalisation: mean {split.mean}, std {split.std}",
    ]


def measures(victim: Classifier, done: Purification) -> dict[str, Any]:
    """What can be said without a trigger: agreement, curvature, movement, batch norm's drift."""
    import torch

    from ngf import metrics
    from ngf.curvature import sharpness
    from ngf.training import pixels

    found: dict[str, Any] = {"movement": movement(victim, done.model)}
    if done.held is not None:
        where = next(done.model.parameters()).device
        x_NHWC = torch.tensor(done.held.x_NHWC, device=where)
        both = {"victim": victim.to(where), "purified": done.model}
        answers = metrics.predict(both, x_NHWC)
        agree = (answers["victim"] == answers["purified"]).double().mean().item()
        found["agreement"] = agree
        part = pixels(x_NHWC[:MEASURED])
        y_N = torch.tensor(done.held.y_N[:MEASURED], device=where)
        found |= {f"sharpness_{whose}": sharpness(m, part, y_N) for whose, m in both.items()}
        found["batch_norm_drift"] = drift(victim, part)
    return found


def movement(victim: Classifier, purified: Classifier) -> dict[str, float]:
    """How far each parameter moved, in units of its norm."""
    before = victim.net.state_dict()
    return {
        name: round(
            (
                (p.detach().cpu() - before[name].cpu()).norm()
                / before[name].cpu().norm().clamp_min(1e-12)
            ).item(),
            6,
        )
        for name, p in purified.net.named_parameters()
    }


def drift(victim: Classifier, x_NCHW: Any) -> dict[str, float]:
    """The mean excess of stored over clean variance, a number a batch norm; see `ngf.sieve`."""
    from ngf.sieve import observe

    return {
        name: round(e_C.mean().item(), 4) for name, e_C in observe(victim, x_NCHW).excess.items()
    }


def _summary(file: Path, report: Mapping[str, Any], done: Purification) -> str:
    said = [f"{file}: {report['parameters_tuned']} parameters tuned, {report['seconds']:.1f} s"]
    if done.held is not None:
        said.append(
            f"ACC on {report['holdout_images']} held-out images {report['holdout_acc_before']:.1%} "
            f"before, {report['holdout_acc_after']:.1%} after; {report['agreement']:.1%} of the "
            "answers are the same"
        )
    if report.get("suspected_target", -1) >= 0:
        name = done.model.card["classes"][report["suspected_target"]]
        said.append(f"suspicious class: {name} (gap {report['gap']:.2f}); this is no proof")
    drifted = [n for n, e in report.get("batch_norm_drift", {}).items() if e > ODD]
    if drifted:
        said.append(f"batch norm remembers more than clean images in {len(drifted)} layers")
    return "; ".join(filter(None, [*said, done.warning]))
