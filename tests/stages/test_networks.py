"""Every network of the field's victims through training and purification, on a few `signs`."""

import numpy as np
import pytest
import torch
from conftest import SIZE, colour_split

from ngf import models, plugins, stages, store
from ngf.datasets import Split
from ngf.errors import InputError

NETWORKS = {
    "preact_resnet": {"depth": 18, "width": 64, "stem_stride": 2},
    "resnet": {"depth": 34, "width": 64, "stem_stride": 2},
    **{
        name: {"name": name, "small_stem": True}
        for name in ("resnet18", "resnet34", "resnet50", "vgg19_bn", "mobilenet_v2")
    },
}


def signs(n_train=64, n_clean=32) -> tuple[Split, Split]:
    source = plugins.load("datasets", "signs").load(train_images=96, test_images=16, seed=0)
    halves = np.split(np.arange(n_train + n_clean), [n_train])
    return tuple(
        Split(
            source.x_train_NHWC[rows], source.y_train_N[rows], "signs", source.classes,
            [0.4] * 3, [0.25] * 3, source.flip,
        )
        for rows in halves
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, numbers):
    train, clean = signs()
    store.save_split(tmp_path / "train", train)
    store.save_split(tmp_path / "clean", clean)
    settings = {"options": {**numbers["attacks"]["badnets"], "poison_rate": 0.2}}
    places = {"train": tmp_path / "train", "out": tmp_path / "poison"}
    stages.run("poison", settings=settings, attack="badnets", **places)
    return tmp_path


def victim(folder, numbers, network):
    """One epoch of two batches."""
    options = NETWORKS.get(network, {"name": network})
    arch = "named" if "name" in options else network
    recipe = {**numbers["train"]["signs"], "arch": arch, "model": options}
    recipe |= {"epochs": 1, "batch_size": 32, "lr": 0.01}
    return stages.run(
        "train",
        settings={"recipe": recipe},
        dataset="signs",
        train=folder / "train",
        poison=folder / "poison",
        out=folder / "victim",
        trigger=folder / "trigger",
    )


def purify(folder, numbers, defense):
    options = dict(numbers["defenses"][defense])
    short = {"epochs": 1, "steps": 2, "views": 2, "search": 2, "mixed": 64}
    options |= {key: value for key, value in short.items() if key in options}
    stages.run(
        "purify",
        settings={"options": options, "protocol": numbers["purify"]},
        model=folder / "victim",
        clean=folder / "clean",
        defense=defense,
        out=folder / defense,
        report=folder / f"{defense}.json",
    )
    return store.load_model(folder / defense)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_is_trained_stored_and_purified(folder, numbers, network):
    victim(folder, numbers, network)
    before, model = store.load_model(folder / "victim"), purify(folder, numbers, "finetune")
    x_NCHW = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        logits_NC = model(x_NCHW)
        assert logits_NC.shape == (5, 16)
        assert torch.equal(model(x_NCHW), logits_NC)  # no dropout in evaluation
        assert (before(x_NCHW) - logits_NC).abs().max() > 1e-4


@pytest.mark.slow
def test_a_network_with_dropout_is_exported(folder, numbers):
    """As `ngf.lineage.registry` has MLflow write it, for any number of images."""
    import mlflow

    victim(folder, numbers, "mobilenet_v2")
    model, x_NCHW = store.load_model(folder / "victim"), torch.rand(5, 3, 32, 32)
    mlflow.pytorch.save_model(
        model,
        folder / "exported",
        serialization_format="pt2",
        input_example=np.zeros((2, 3, 32, 32), np.float32),
        pip_requirements=[],
    )
    again = mlflow.pytorch.load_model(str(folder / "exported"))
    torch.testing.assert_close(again(x_NCHW), model(x_NCHW), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("defense", plugins.names("defenses"))
def test_every_defense_takes_depthwise_convolutions_and_dropout(tmp_path, numbers, defense):
    card = {"arch": "named", "options": NETWORKS["mobilenet_v2"], "classes": ["r", "g", "b"]}
    card |= {"input_CHW": [3, SIZE, SIZE]}
    store.save_model(tmp_path / "victim", models.build(card, [0.3] * 3, [0.2] * 3))
    store.save_split(tmp_path / "clean", colour_split(32, seed=1))
    model = purify(tmp_path, numbers, defense)
    assert not model.training
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("vit_b_16", r"does not take images \[N, 3, 32, 32\]: .*; train.signs.model names the net"),
        ("googlenet", "train.signs.model: it gives auxiliary logits in training"),
    ],
)
def test_a_network_that_cannot_be_trained_is_said(folder, numbers, network, said):
    with pytest.raises(InputError, match=said):
        victim(folder, numbers, network)
    assert not (folder / "victim").exists()
