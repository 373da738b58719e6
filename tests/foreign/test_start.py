"""Training starts from published weights: out of torch's cache, by name, and all of them."""

import importlib
import urllib.error

import pytest
import torch
from conftest import CLASSES, SIZE, colour_split

from ngf import models, stages, store
from ngf.errors import InputError
from ngf.foreign import start
from ngf.models import named
from ngf.vision import load_torchvision

WHERE = "train.colours.start"
V1 = "mobilenet_v2-b0353104.pth"  # as torchvision calls the file of IMAGENET1K_V1


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch's, and no network."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network here")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def fresh(arch="named", n_classes=CLASSES, **options):
    card = {"arch": arch, "options": options or {"name": "mobilenet_v2"}}
    card |= {"classes": [str(n) for n in range(n_classes)], "input_CHW": [3, SIZE, SIZE]}
    torch.manual_seed(1)
    return models.build(card, [0.3] * 3, [0.2] * 3)


def published(name="mobilenet_v2", n_classes=10):
    torch.manual_seed(0)
    return named.build(n_classes, name=name).state_dict()


def test_torchvisions_weights_come_from_the_cache_with_their_normalisation(cache):
    theirs = published()
    torch.save(theirs, cache / V1)
    own = {key: t.clone() for key, t in fresh().net.state_dict().items()}
    model = start.begin(fresh(), "IMAGENET1K_V1", WHERE)
    state = model.net.state_dict()
    head = [key for key in state if key.startswith("classifier.1")]
    assert len(head) == 2
    assert all(torch.equal(state[key], own[key] if key in head else theirs[key]) for key in state)
    assert model.card["mean"] == [0.485, 0.456, 0.406]
    assert model.mean.flatten().tolist() == pytest.approx(model.card["mean"])
    assert model.std.flatten().tolist() == pytest.approx(model.card["std"])
    assert model.card["std"] == [0.229, 0.224, 0.225]
    assert model.card["start"] == {
        "weights": "MobileNet_V2_Weights.IMAGENET1K_V1",
        "digest": store.digest(cache / V1),
        "fresh": ["classifier.1"],
    }


def test_a_head_of_as_many_classes_is_taken_over(cache):
    theirs = published(n_classes=CLASSES)
    torch.save(theirs, cache / V1)
    model = start.begin(fresh(), "IMAGENET1K_V1", WHERE)
    assert all(torch.equal(t, theirs[key]) for key, t in model.net.state_dict().items())
    assert start.told(model.card) == ", from MobileNet_V2_Weights.IMAGENET1K_V1 with its head"


def test_a_small_stem_keeps_what_only_lost_its_stride(cache):
    torch.save(published(), cache / V1)
    model = start.begin(fresh(name="mobilenet_v2", small_stem=True), "IMAGENET1K_V1", WHERE)
    assert model.net.features[0][0].stride == (1, 1)


def test_another_stem_is_an_error_that_names_it(tmp_path):
    torch.save(published("resnet18"), tmp_path / "w.pt")
    said = r"not those of named \(name: resnet18, small_stem: True\): conv1.weight is \[64, 3, 7, 7"
    with pytest.raises(InputError, match=said):
        start.begin(fresh(name="resnet18", small_stem=True), str(tmp_path / "w.pt"), WHERE)


def test_without_a_network_the_error_says_what_to_put_where(cache):
    with pytest.raises(InputError) as error:
        start.begin(fresh(), "DEFAULT", WHERE)
    said = str(error.value)
    assert "\n" not in said
    assert said.startswith("MobileNet_V2_Weights.IMAGENET1K_V2 is not in torch's cache")
    assert "no network here" in said
    address = "https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth"
    assert said.endswith(f"fetch {address} and put it at {cache / 'mobilenet_v2-7ebf99e0.pth'}")
    assert not any(cache.iterdir())


def test_a_download_is_kept_and_its_hash_checked(cache, monkeypatch):
    asked = []

    def download(url, target, digits, progress):
        asked.append((url.rpartition("/")[2], digits, progress))
        torch.save(published(), target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        start.begin(fresh(), "IMAGENET1K_V1", WHERE)
    assert asked == [(V1, "b0353104", False)]


def test_a_file_in_the_cache_executes_no_code(cache):
    torch.save(named.build(2, name="mobilenet_v2"), cache / V1)
    with pytest.raises(
        InputError, match=r"needs code to be read \(.*MobileNetV2\), which is refused"
    ):
        start.begin(fresh(), "IMAGENET1K_V1", WHERE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"name": "mobilenet_v2"},
            "'IMAGENET' is no file, and of mobilenet_v2 there is IMAGENET1K_V1, IMAGENET1K_V2, "
            "DEFAULT, timm",
        ),
        (
            {"arch": "resnet", "depth": 18, "width": 4, "stem_stride": 2},
            "'IMAGENET' is no file, and of resnet there is nothing that is published",
        ),
    ],
)
def test_unknown_weights_are_answered_with_those_that_exist(options, said):
    with pytest.raises(InputError) as error:
        start.begin(fresh(**options), "IMAGENET", WHERE)
    assert str(error.value) == f"{WHERE}: {said}"


def test_a_file_without_a_card_keeps_the_splits_normalisation(tmp_path):
    torch.save(
        {"state_dict": {f"module.{k}": t for k, t in published().items()}}, tmp_path / "w.pt"
    )
    model = start.begin(fresh(), str(tmp_path / "w.pt"), WHERE)
    assert torch.equal(model.net.features[0][0].weight, published()["features.0.0.weight"])
    assert model.card["mean"] == [0.3] * 3
    assert model.card["start"]["weights"] == str(tmp_path / "w.pt")


def test_a_model_of_this_project_brings_its_normalisation(tmp_path):
    options = {"arch": "resnet", "depth": 18, "width": 4, "stem_stride": 2}
    given = fresh(**options, n_classes=7)
    given.card |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    store.save_model(tmp_path / "given", given)
    model = start.begin(fresh(**options), str(tmp_path / "given"), WHERE)
    assert (model.card["mean"], model.card["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert torch.equal(model.net[0].weight, given.net[0].weight)
    assert model.card["start"]["fresh"] == ["13"]


def test_timms_weights_come_from_the_cache_with_their_normalisation(cache):
    load_torchvision()
    timm = importlib.import_module("timm")
    from safetensors.torch import save_file

    theirs = timm.create_model("test_resnet").state_dict()
    save_file(theirs, cache / "test_resnet.r160_in1k.safetensors")
    model = start.begin(fresh(name="test_resnet"), "timm", WHERE)
    state = model.net.state_dict()
    assert all(torch.equal(t, theirs[k]) for k, t in state.items() if not k.startswith("fc."))
    assert model.card["mean"] == model.card["std"] == [0.5] * 3
    assert model.card["start"]["weights"] == "timm's test_resnet.r160_in1k"
    assert model.card["start"]["fresh"] == ["fc"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "test_resnet",
            "fetch https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
            " and put it at .*/hub/checkpoints/test_resnet.r160_in1k.safetensors$",
        ),
        ("resnetv2_50d", f"{WHERE}: timm has no weights of 'resnetv2_50d'"),
    ],
)
def test_timms_weights_that_are_not_to_be_had_are_said(cache, name, said):
    with pytest.raises(InputError, match=said):
        start.begin(fresh(name=name), "timm", WHERE)


def test_what_timm_cannot_bring_into_its_network_is_said(cache):
    from safetensors.torch import save_file

    file = cache / "test_resnet.r160_in1k.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"does not hold timm's test_resnet.r160_in1k: Error\(s\)"):
        start.begin(fresh(name="test_resnet"), "timm", WHERE)


def test_a_victim_is_trained_from_a_start_and_says_so(cache, tmp_path, numbers):
    """Its learning rate is 0, so that what it began with is what it is."""
    torch.save(published(), cache / V1)
    store.save_split(tmp_path / "train", colour_split(24, seed=0))
    recipe = {**numbers["train"]["signs"], "arch": "named", "model": {"name": "mobilenet_v2"}}
    recipe |= {"start": "IMAGENET1K_V1", "epochs": 1, "batch_size": 12, "lr": 0.0}
    done = stages.run(
        "train",
        settings={"recipe": recipe},
        dataset="colours",
        train=tmp_path / "train",
        out=tmp_path / "out",
    )
    assert done.message.endswith(
        ", from MobileNet_V2_Weights.IMAGENET1K_V1 with a fresh head, classifier.1"
    )
    model = store.load_model(tmp_path / "out")
    assert torch.equal(model.net.features[0][0].weight, published()["features.0.0.weight"])
    assert model.card["mean"] == [0.485, 0.456, 0.406]
