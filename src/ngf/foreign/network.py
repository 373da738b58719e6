"""The network that foreign weights belong to: a name, a factory of the user's, or a card."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngf.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

NAMED = "named"  # the model plug-in that knows torchvision's and timm's networks
FACTORY = "factory"  # the word in a card for a network that only its owner's code can build
COUNTS = ("num_classes", "n_classes", "classes")  # how factories call it


def assemble(
    arch: str, tensors: Mapping[str, Tensor], n_classes: int, head: str | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its weights in it, and what a card says of it: arch, options and head.

    Args:
        arch: a torchvision or timm name, or `package.module:factory`. head: the name of the linear
            layer that gives the logits; None takes the last one.

    Raises:
        InputError: an unknown name, weights that do not fit, or no such head.
    """
    if ":" in arch:
        net, card = _made(arch, n_classes), {"arch": FACTORY, "options": {"factory": arch}}
    else:
        net, card = _by_name(arch, tensors, n_classes)
    _load(net, tensors, arch, n_classes)
    return net, {**card, "head": _head(net, n_classes, head)}


def _by_name(
    name: str, tensors: Mapping[str, Tensor], n_classes: int
) -> tuple[nn.Module, dict[str, Any]]:
    """With a small stem where the weights of the first convolution have one."""
    from ngf.models import named

    net = named.build(n_classes, name=name)
    kernel = tensors["conv1.weight"].shape if "conv1.weight" in tensors else None
    own = getattr(net, "conv1", None)
    small = kernel is not None and own is not None and kernel[2:] == (3, 3) != own.kernel_size
    if small:
        named.shrink_stem(net)
    return net, {"arch": NAMED, "options": {"name": name, "small_stem": small}}


def _made(arch: str, n_classes: int) -> nn.Module:
    """What the user's factory returns; its module is looked for in the working directory too."""
    from torch import nn

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


def _load(net: nn.Module, tensors: Mapping[str, Tensor], arch: str, n_classes: int) -> None:
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in tensors]
    odd = [name for name in tensors if name not in wanted]
    if missing or odd:
        first = f"it lacks {missing[0]}" if missing else f"it has {odd[0]}, which {arch} has not"
        raise InputError(
            f"the weights are not those of {arch}: {len(missing)} are missing and {len(odd)} too "
            f"many; {first}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise InputError(
                f"the weights are not those of {arch} with {n_classes} classes: {name} is "
                f"{list(tensor.shape)}, not {list(wanted[name].shape)}"
            )
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError("the weights are not finite: their training diverged")
    net.load_state_dict(dict(tensors))


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
