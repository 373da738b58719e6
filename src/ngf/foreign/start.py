"""What training starts from: weights that torchvision or timm publish, or a file's.

They must be those of the network; only a head for another number of classes starts fresh. Published
files lie in torch's cache (`TORCH_HOME`) and are downloaded where they do not.
"""

from __future__ import annotations

import http.client
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngf.errors import InputError
from ngf.foreign import network
from ngf.foreign.weights import URIS, Checkpoint, read

if TYPE_CHECKING:
    from torch import Tensor

    from ngf.models import Classifier

TIMM = "timm"
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Found:
    """name: what the weights are called. mean, std: of the normalisation that they were trained
    with, three numbers each; None: not known."""

    name: str
    checkpoint: Checkpoint
    mean: list[float] | None = None
    std: list[float] | None = None


def begin(model: Classifier, start: str, where: str) -> Classifier:
    """The classifier with these weights, and with the normalisation that they were trained with.

    Args:
        start: a name that torchvision has for weights of this network (`IMAGENET1K_V2`, `DEFAULT`),
            `timm` for timm's own, or a file, folder or MLflow URI. where: the key that says so.

    Returns:
        The same network, changed; `start` of its card names the weights, their digest, and the
        layers that are fresh.

    Raises:
        InputError: no such weights, not to be had, or not those of this network.
    """
    from ngf import models, store

    found = _find(model.card, start, where)
    tensors, fresh = _with_own_head(model, found.checkpoint)
    network.load(model.net, tensors, _described(model.card))
    digest = store.digest(found.checkpoint.file)
    mean, std = found.mean or model.card["mean"], found.std or model.card["std"]
    said = {"start": {"weights": found.name, "digest": digest, "fresh": fresh}}
    return models.Classifier(model.net, mean, std, {**model.card, **said, "mean": mean, "std": std})


def told(card: Mapping[str, Any]) -> str:
    """What a run's message says of it; empty where training started from random weights."""
    if "start" not in card:
        return ""
    fresh = f"a fresh head, {', '.join(card['start']['fresh'])}" if card["start"]["fresh"] else ""
    return f", from {card['start']['weights']} with {fresh or 'its head'}"


def _find(card: Mapping[str, Any], start: str, where: str) -> Found:
    name = card["options"].get("name") if card["arch"] == network.NAMED else None
    known = _torchvision_weights(name)
    if start in known:
        return _from_torchvision(known[start])
    if start == TIMM and name:
        return _from_timm(name, where)
    if start.startswith(URIS) or Path(start).exists():
        checkpoint = read(start)
        return Found(start, checkpoint, checkpoint.card.get("mean"), checkpoint.card.get("std"))
    published = ", ".join([*known, TIMM]) if name else "nothing that is published"
    raise InputError(
        f"{where}: '{start}' is no file, and of {name or card['arch']} there is {published}"
    )


def _with_own_head(model: Classifier, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], list]:
    """The weights by the network's names, its own head among them where theirs has other classes;
    and the names of the layers that are its own."""
    from ngf import models

    own = model.net.state_dict()
    tensors = dict(checkpoint.called(own.keys()).tensors)
    last = models.head(model)
    name = next(name for name, module in model.net.named_modules() if module is last)
    theirs = tensors.get(f"{name}.weight")
    if theirs is None or len(theirs) == last.out_features:
        return tensors, []
    return tensors | {key: t for key, t in own.items() if key.startswith(f"{name}.")}, [name]


def _described(card: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key}: {value}" for key, value in card["options"].items())
    return f"{card['arch']} ({options})"


def _torchvision_weights(name: str | None) -> dict[str, Any]:
    """torchvision's weights of a network, by their names; none where it does not know it."""
    from ngf.vision import load_torchvision

    vision = load_torchvision().models
    if name not in vision.list_models(module=vision):
        return {}
    return dict(vision.get_model_weights(name).__members__)


def _from_torchvision(weights: Any) -> Found:
    checkpoint = read(str(_fetched(weights.url, Path(weights.url).name, str(weights))))
    usual = weights.transforms()
    return Found(str(weights), checkpoint, list(usual.mean), list(usual.std))


def _from_timm(name: str, where: str) -> Found:
    """timm's default weights of `name`; timm itself brings old layouts into today's."""
    if importlib.util.find_spec("timm") is None:
        raise InputError(f"{where}: timm is not installed: pip install timm")
    timm = importlib.import_module("timm")
    published = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if published is None or not (published.hf_hub_id or published.url):
        raise InputError(f"{where}: timm has no weights of '{name}'")
    url = published.url
    if published.hf_hub_id:
        inside = published.hf_hub_filename or "model.safetensors"
        url = f"{HUB}/{published.hf_hub_id}/resolve/main/{inside}"
    called = f"{name}.{published.tag}" if published.tag else name
    checkpoint = read(str(_fetched(url, called + Path(url).suffix, f"timm's {called}")))
    overlay = {"state_dict": checkpoint.tensors}
    try:
        net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # its converters and torch say in their own ways what does not fit
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{checkpoint.file} does not hold timm's {called}: {said}") from error
    tensors = dict(net.state_dict())
    mean, std = list(published.mean), list(published.std)
    return Found(f"timm's {called}", Checkpoint(checkpoint.file, tensors), mean, std)


def _fetched(url: str, name: str, what: str) -> Path:
    """The file `name` in torch's cache, downloaded where it is not there.

    A hash in its name, as in resnet50-0676ba61.pth, is checked then.
    """
    from torch import hub

    from ngf.progress import busy

    file = Path(hub.get_dir()) / "checkpoints" / name
    if file.is_file():
        return file
    digits = hub.HASH_REGEX.search(name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with busy(f"download {url}"):
            hub.download_url_to_file(url, str(file), digits and digits[1], progress=False)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{what} is not in torch's cache and cannot be downloaded ({said}): fetch {url} and "
            f"put it at {file}"
        ) from error
    return file
