"""The networks that victims are trained as, at the sizes of their images; shapes alone."""

import pytest
import torch
from torch import nn

from ngf import models
from ngf.errors import InputError
from ngf.models import named

HEADS = {
    "resnet18": "fc",
    "resnet34": "fc",
    "resnet50": "fc",
    "vgg19_bn": "classifier.6",
    "mobilenet_v2": "classifier.1",
}


@pytest.fixture(autouse=True)
def no_numbers():
    """Tensors have shapes and no values here, so that large networks cost nothing."""
    with torch.device("meta"):
        yield


def build(arch="named", n_classes=3, **options):
    card = {"arch": arch, "options": options, "classes": [str(n) for n in range(n_classes)]}
    return models.build(card, [0.3] * 3, [0.2] * 3).eval()


def last_map_HW(net: nn.Module, size: int) -> tuple[int, ...]:
    """The size of what the last convolution gives."""
    seen = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *passed: seen.append(passed[2].shape[2:]))
    net.eval()(torch.rand(1, 3, size, size))
    return tuple(seen[-1])


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("name", HEADS)
def test_a_network_answers_images_of_each_size(name, size):
    model = build(name=name, small_stem=size < 224)
    assert model(torch.rand(2, 3, size, size)).shape == (2, 3)
    assert models.head(model) is model.net.get_submodule(HEADS[name])


@pytest.mark.parametrize(
    ("name", "size", "small", "large"),
    [
        ("resnet50", 32, 4, 1),
        ("resnet50", 64, 8, 2),
        ("mobilenet_v2", 32, 4, 1),
        ("mobilenet_v2", 64, 8, 2),
        ("vgg19_bn", 32, 2, 2),
    ],
)
def test_a_small_stem_leaves_a_map_to_the_last_convolution(name, size, small, large):
    assert last_map_HW(named.build(3, name=name, small_stem=True), size) == (small, small)
    assert last_map_HW(named.build(3, name=name), size) == (large, large)


def test_vgg_for_small_images_reads_each_feature_once():
    small, large = (named.build(3, name="vgg19_bn", small_stem=small) for small in (True, False))
    assert small.classifier[0].in_features == 512
    assert large.classifier[0].in_features == 512 * 49


@pytest.mark.parametrize("arch", ["preact_resnet", "resnet"])
@pytest.mark.parametrize(("stride", "size", "kept"), [(1, 32, 4), (2, 64, 4), (4, 224, 7)])
def test_the_stem_of_the_projects_own_networks(arch, stride, size, kept):
    model = build(arch, depth=18, width=64, stem_stride=stride)
    assert last_map_HW(model, size) == (kept, kept)
    assert model(torch.rand(2, 3, size, size)).shape == (2, 3)


def test_an_unknown_stem_is_answered_with_those_that_exist():
    with pytest.raises(InputError, match="stem_stride must be 1, 2 or 4, got 3"):
        build("resnet", depth=18, width=4, stem_stride=3)
