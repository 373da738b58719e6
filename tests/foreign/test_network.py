"""The network of foreign weights: by name, by factory, with the right head."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ngf import models, store
from ngf.errors import InputError
from ngf.foreign import network
from ngf.foreign.weights import Checkpoint
from ngf.models import Classifier, named

CLASSES = 3
FACTORY = """
from torch import nn
def tiny(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 5), nn.Linear(5, num_classes), nn.Linear(num_classes, 7))
def theirs(num_classes):
    import torchvision
    return torchvision.models.shufflenet_v2_x0_5(num_classes=num_classes)
def broken(): raise KeyError("mine")
def nothing(): return 3
def frozen(num_classes):
    net = tiny(num_classes).requires_grad_(False)
    net[5] = nn.Identity()
    return net
def tied(num_classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, num_classes))
    net[2].weight = net[1].weight
    return net
class Wrapped(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, num_classes))
"""


def assemble(arch, tensors, n_classes, head):
    net, card, _ = network.assemble(arch, Checkpoint(Path("w.pt"), tensors), n_classes, head)
    return net, card


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A module of the user's, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text(FACTORY)
    monkeypatch.delitem(__import__("sys").modules, "theirs", raising=False)
    import importlib

    importlib.invalidate_caches()


def tiny_weights() -> dict[str, torch.Tensor]:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.Linear(5, 3),
        nn.Linear(3, 7),
    ).state_dict()  # fmt: skip


@pytest.mark.parametrize("small", [False, True])
def test_a_torchvision_name_with_either_stem(tmp_path, small):
    net = named.build(CLASSES, name="resnet18", small_stem=small)
    found, card = assemble("resnet18", net.state_dict(), CLASSES, None)
    assert card == {
        "arch": "named",
        "options": {"name": "resnet18", "small_stem": small},
        "head": "fc",
    }
    x_NCHW = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(found.eval()(x_NCHW), net.eval()(x_NCHW))
    card |= {"classes": ["a", "b", "c"], "input_CHW": [3, 32, 32]}
    card |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    store.save_model(tmp_path / "kept", Classifier(found, card["mean"], card["std"], card))
    again = store.load_model(tmp_path / "kept")
    torch.testing.assert_close(again.net(x_NCHW), found(x_NCHW))
    assert models.head(again) is again.net.fc


def test_a_timm_name():
    net = named.build(CLASSES, name="test_resnet")
    for name in ("test_resnet", "test_resnet.r160_in1k"):  # a tag says which weights it had
        _, card = assemble(name, net.state_dict(), CLASSES, None)
        assert card["head"] == "fc"


def test_a_factory_and_a_head_by_name(factory):
    net, card = assemble("theirs:tiny", tiny_weights(), CLASSES, "4")
    assert card == {"arch": "factory", "options": {"factory": "theirs:tiny"}, "head": "4"}
    assert net[4].out_features == CLASSES


@pytest.mark.parametrize(
    ("arch", "head", "said"),
    [
        ("theirs:tiny", None, "the head 5 has 7 outputs for 3 classes; --head names another"),
        ("theirs:tiny", "3", "the head 3 has 5 outputs for 3 classes"),
        ("theirs:tiny", "0", "--head 0: the model's linear layers are 3, 4, 5"),
        ("theirs:broken", None, "--arch theirs:broken: KeyError: 'mine'"),
        ("theirs:nothing", None, "--arch theirs:nothing gives a int, not a torch.nn.Module"),
        ("theirs:missing", None, "--arch theirs:missing: AttributeError"),
        ("not_there:tiny", None, "--arch not_there:tiny: ModuleNotFoundError"),
        ("resnet81", None, "there is resnet18, .*; code of yours is package.module:factory"),
        ("vit", None, "there is vit_"),
        (
            "resnet18",
            None,
            "the weights are not those of resnet18 with 3 classes: 102 are missing and 8 too many; "
            "they lack conv1.weight and have 0.weight",
        ),
        ("theirs:frozen", None, "0 are missing and 2 too many; they have 5.weight"),
    ],
)
def test_what_cannot_be_built_is_said(factory, arch, head, said):
    with pytest.raises(InputError, match=said):
        assemble(arch, tiny_weights(), CLASSES, head)


def test_another_number_of_classes_is_said():
    tensors = named.build(10, name="resnet18").state_dict()
    said = r"resnet18 with 3 classes: fc.weight is \[10, 512\], not \[3, 512\]: if they are of 10 "
    with pytest.raises(InputError, match=said):
        assemble("resnet18", tensors, CLASSES, None)
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :1]  # and of grey images
    with pytest.raises(InputError, match=r"conv1.weight is \[64, 1, 7, 7\], not .*7\]$"):
        assemble("resnet18", tensors, CLASSES, None)


def test_a_factory_may_use_torchvision_whatever_its_build(factory):
    tensors = named.build(CLASSES, name="shufflenet_v2_x0_5").state_dict()
    _, card = assemble("theirs:theirs", tensors, CLASSES, None)
    assert card["head"] == "fc"


def test_a_frozen_layer_is_tuned_too(factory):
    tensors = {name: t for name, t in tiny_weights().items() if not name.startswith("5")}
    net, _ = assemble("theirs:frozen", tensors, CLASSES, None)
    assert all(p.requires_grad for p in net.parameters())


def test_names_that_share_a_tensor_need_be_there_once(factory):
    torch.manual_seed(0)
    shared, last = torch.rand(4, 4), torch.rand(CLASSES, 4)
    tensors = {"1.weight": shared, "1.bias": torch.rand(4), "2.bias": torch.rand(4)}
    tensors |= {"3.weight": last, "3.bias": torch.rand(CLASSES)}
    net, _ = assemble("theirs:tied", tensors, CLASSES, None)
    assert torch.equal(net[2].weight, shared)


def test_a_network_may_keep_all_in_a_part_called_model(factory):
    """And a batch norm's counter may be missing."""
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, CLASSES))
    tensors = {f"model.{name}": t for name, t in net.state_dict().items() if "num" not in name}
    for prefix in ("", "module."):
        own = {prefix + name: tensor for name, tensor in tensors.items()}
        found, card = assemble("theirs:Wrapped", own, CLASSES, None)
        assert card["head"] == "model.2"
        assert torch.equal(found.model[2].weight, net[2].weight)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Conv2d(3, 2, 9), r"does not take images \[N, 3, 8, 8\]: .*; try more$"),
        (nn.Conv2d(1, 2, 3), r"takes images of 1 channels, and only networks for RGB, three"),
        (nn.Conv2d(3, 2, 3), r"gives \[2, 2, 6, 6\] for two images, not logits \[2, 3\]"),
        (nn.LSTM(8, 3), "does not take images"),
    ],
)
def test_a_network_that_gives_no_logits_is_said(model, said):
    with pytest.raises(InputError, match=said):
        network.check_answers(model, (8, 8), CLASSES, remedy="try more")


def test_weights_that_are_not_finite_are_said():
    tensors = named.build(CLASSES, name="resnet18").state_dict()
    tensors["fc.bias"] = torch.tensor([0.0, float("nan"), 0.0])
    with pytest.raises(InputError, match=r"the weights are not finite: fc\.bias"):
        assemble("resnet18", tensors, CLASSES, None)


def test_a_network_without_a_linear_layer_has_no_head():
    tensors = named.build(CLASSES, name="squeezenet1_1").state_dict()
    with pytest.raises(InputError, match="no linear layer"):
        assemble("squeezenet1_1", tensors, CLASSES, None)


def test_a_stored_card_does_not_run_a_factory(tmp_path, factory):
    """Who opens a folder from elsewhere did not name the code."""
    net, card = assemble("theirs:tiny", tiny_weights(), CLASSES, "4")
    card |= {"classes": ["a", "b", "c"], "input_CHW": [3, 8, 8], "mean": [0.0], "std": [1.0]}
    store.save_model(tmp_path / "kept", Classifier(net, [0.0], [1.0], card))
    with pytest.raises(InputError, match="unknown model 'factory': there is named"):
        store.load_model(tmp_path / "kept")


def test_a_small_stem_keeps_the_size_of_the_image():
    for name in ("resnet18", "mobilenet_v2"):
        net = named.build(CLASSES, name=name, small_stem=True)
        first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
        assert first.stride == (1, 1)
        assert net.eval()(torch.rand(1, 3, 32, 32)).shape == (1, CLASSES)
