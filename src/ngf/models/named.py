"""Any network that torchvision or timm builds by name: `resnet50`, `vgg19_bn`, `convnext_tiny`.

Their weights are random; `ngf.foreign.start` brings published ones. timm is asked where it is
installed and torchvision does not know the name.
"""

import difflib
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from ngf.errors import InputError
from ngf.vision import load_torchvision


def build(n_classes: int, *, name: str, small_stem: bool = False) -> nn.Module:
    """The network `name` for `n_classes`.

    Args:
        small_stem: for images of 32 or 64 pixels; see `shrink_stem`.
    """
    vision = load_torchvision().models
    known = vision.list_models(module=vision)  # classifiers: detectors fetch backbones
    if name in known:
        net: nn.Module = _made(
            name, lambda: vision.get_model(name, weights=None, num_classes=n_classes)
        )
    else:
        net = _from_timm(name, n_classes, known)
    if small_stem:
        shrink_stem(net)
    return net


def shrink_stem(net: nn.Module) -> None:
    """Change a network in place, so that a small image is not reduced at once.

    The first convolution of a ResNet becomes 3x3 and keeps the size, and no pooling follows.
    MobileNetV2 loses its first two strides, as is usual for CIFAR. VGG keeps its convolutions, and
    its classifier takes their mean in place of a 7x7 map, which would be one pixel 49 times over.
    Another network's first convolution keeps its kernel and loses its stride.
    """
    vision = load_torchvision().models
    stem = getattr(net, "conv1", None)
    if hasattr(net, "maxpool") and isinstance(stem, nn.Conv2d):
        net.conv1 = nn.Conv2d(3, stem.out_channels, 3, padding=1, bias=stem.bias is not None)
        net.maxpool = nn.Identity()
    elif isinstance(net, vision.VGG):
        net.avgpool = nn.AdaptiveAvgPool2d(1)
        net.classifier[0] = nn.Linear(512, net.classifier[0].out_features)
        nn.init.normal_(net.classifier[0].weight, 0, 0.01)  # as torchvision has it
        nn.init.zeros_(net.classifier[0].bias)
    else:
        convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        if isinstance(net, vision.MobileNetV2):
            changed = [m for m in convolutions if m.stride == (2, 2)][:2]
        else:  # one with a larger kernel cuts patches
            changed = [m for m in convolutions[:1] if m.kernel_size[0] <= 3]
        for convolution in changed:
            convolution.stride = (1, 1)


def _from_timm(name: str, n_classes: int, others: list[str]) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise InputError(
            f"torchvision has no model '{name}' and timm is not installed: torchvision has "
            f"{_near(name, others)} and {len(others)} in all"
        )
    timm = importlib.import_module("timm")
    if name.partition(".")[0] not in timm.list_models():  # a tag says which weights it once had
        known = sorted({*others, *timm.list_models()})
        raise InputError(
            f"neither torchvision nor timm has a model '{name}': there is {_near(name, known)} and "
            f"{len(known)} in all"
        )
    return _made(name, lambda: timm.create_model(name, pretrained=False, num_classes=n_classes))


def _near(name: str, known: list[str]) -> str:
    """A few of the names: those that are spelled alike, or that contain this one."""
    short = name.lower()
    inside = sorted(
        (n for n in known if short in n), key=lambda n: (not n.startswith(short), len(n))
    )
    alike = difflib.get_close_matches(short, known, 4)
    return ", ".join(alike or inside[:4] or ["resnet18", "resnet50", "vgg19_bn"])


def _made(name: str, make: Callable[[], Any]) -> nn.Module:
    try:
        with warnings.catch_warnings(action="ignore"):  # of initial weights, which nobody keeps
            net = make()
    except Exception as error:  # builders say in their own ways that they take no `num_classes`
        raise InputError(
            f"model '{name}' cannot be built: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(net, nn.Module):
        raise InputError(f"model '{name}' is a {type(net).__name__}, not a torch.nn.Module")
    return net
