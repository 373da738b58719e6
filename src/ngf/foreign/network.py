"""The network that foreign weights belong to: a name, a factory of the user's, or a card."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngf.errors import InputError
from ngf.foreign.weights import COUNTER

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ngf.foreign.weights import Checkpoint

NAMED = "named"  # the model plug-in that knows torchvision's and timm's networks
FACTORY = "factory"  # the word in a card for a network that only its owner's code can build
COUNTS = ("num_classes", "n_classes", "classes")  # how factories call it


def assemble(
    arch: str, checkpoint: Checkpoint, n_classes: int, head: str | None
) -> tuple[nn.Module, dict[str, Any], Checkpoint]:
    """The network with the weights in it, what a card says of it (arch, options and head), and the
    checkpoint by the network's names.

    Args:
        arch: a torchvision or timm name, or `package.module:factory`. head: the name of the linear
            layer that gives the logits; None takes the last one.

    Raises:
        InputError: an unknown name, weights that do not fit, or no such head.
    """
    if ":" in arch:
        net, card = _made(arch, n_classes), {"arch": FACTORY, "options": {"factory": arch}}
    else:
        net, card = _by_name(arch, checkpoint, n_classes)
    checkpoint = checkpoint.called(net.state_dict().keys())
    load(net, checkpoint.tensors, f"{arch} with {n_classes} classes")
    net.requires_grad_()  # a frozen layer may be where a backdoor listens
    return net, {**card, "head": _head(net, n_classes, head)}, checkpoint


def _by_name(name: str, checkpoint: Checkpoint, n_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """With a small stem where the weights of the first convolution have one."""
    from torch import nn

    from ngf.models import named

    try:
        net = named.build(n_classes, name=name)
    except InputError as error:
        raise InputError(f"--arch: {error}; code of yours is package.module:factory") from error
    tensors = checkpoint.called(net.state_dict().keys()).tensors
    stem = getattr(net, "conv1", None)
    small = (
        isinstance(stem, nn.Conv2d)
        and "conv1.weight" in tensors
        and tensors["conv1.weight"].shape[2:] == (3, 3) != stem.kernel_size
    )
    if small:
        named.shrink_stem(net)
    return net, {"arch": NAMED, "options": {"name": name, "small_stem": small}}


def _made(arch: str, n_classes: int) -> nn.Module:
    """What the user's factory returns; its module is looked for in the working directory too."""
    from torch import nn

    from ngf.vision import load_torchvision

    load_torchvision()  # their code imports it as likely as not, and here is known how
    module, _, name = arch.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), name)
        taken = inspect.signature(factory).parameters
        count = next((word for word in COUNTS if word in taken), None)
        net = factory(**{count: n_classes}) if count else factory()
    except Exception as error:  # it is the user's code: whatever it raises is for the user
        raise InputError(f"--arch {arch}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(net, nn.Module):
        raise InputError(f"--arch {arch} gives a {type(net).__name__}, not a torch.nn.Module")
    return net


def load(net: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Put the weights in, all of them; names that share a tensor need be there once."""
    wanted = net.state_dict()
    places = {wanted[name].data_ptr() for name in tensors if name in wanted}
    missing = [
        name
        for name, tensor in wanted.items()
        if name not in tensors and not name.endswith(COUNTER) and tensor.data_ptr() not in places
    ]
    odd = [name for name in tensors if name not in wanted]
    if missing or odd:
        lacks = [f"lack {n}" for n in missing[:1]] + [f"have {n}" for n in odd[:1]]
        raise InputError(
            f"the weights are not those of {what}: {len(missing)} are missing and {len(odd)} too "
            f"many; they {' and '.join(lacks)}"
        )
    _check_shapes(tensors, wanted, what)
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise InputError(f"the weights are not finite: {broken[0]}; their training diverged")
    net.load_state_dict(dict(tensors), strict=False)


def _check_shapes(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    wrong = [name for name, tensor in given.items() if tensor.shape != wanted[name].shape]
    if not wrong:
        return
    first, own = given[wrong[0]].shape, wanted[wrong[0]].shape
    said = f"{wrong[0]} is {list(first)}, not {list(own)}"
    if all(wanted[name].shape == (own[0], *given[name].shape[1:]) for name in wrong):
        said += f": if they are of {first[0]} classes, --clean needs a folder for each"
    raise InputError(f"the weights are not those of {what}: {said}")


def check_answers(
    model: nn.Module, size_HW: tuple[int, ...], n_classes: int, *, remedy: str
) -> None:
    """`InputError`, which ends in the remedy, unless two images give two rows of logits."""
    import torch

    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, 3, *size_HW))
    except Exception as error:  # networks say in their own ways that an image does not fit
        said = " ".join(str(error).split())[:200]
        channels = _channels(model)
        if channels != 3:
            raise InputError(
                f"the network takes images of {channels} channels, and only networks for RGB, "
                "three channels, can be purified"
            ) from error
        raise InputError(
            f"the network does not take images [N, 3, {size_HW[0]}, {size_HW[1]}]: {said}; {remedy}"
        ) from error
    shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != [2, n_classes]:
        raise InputError(f"the network gives {shape} for two images, not logits [2, {n_classes}]")


def _channels(model: nn.Module) -> int:
    """What the first convolution takes; three where there is none."""
    from torch import nn

    found = [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    return found[0] if found else 3


def _head(net: nn.Module, n_classes: int, wanted: str | None) -> str:
    """The name of the linear layer that gives the logits."""
    from torch import nn

    linear = {name: m for name, m in net.named_modules() if isinstance(m, nn.Linear)}
    if not linear:
        raise InputError("the model has no linear layer, so it has no classifier head to tune")
    name = wanted or list(linear)[-1]
    if name not in linear:
        raise InputError(f"--head {name}: the model's linear layers are {_few(list(linear))}")
    if linear[name].out_features != n_classes:
        raise InputError(
            f"the head {name} has {linear[name].out_features} outputs for {n_classes} classes; "
            f"--head names another of {_few(list(linear))}"
        )
    return name


def _few(names: list[str]) -> str:
    return ", ".join(names if len(names) < 9 else [*names[:3], "…", *names[-5:]])
