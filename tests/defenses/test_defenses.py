"""What the room promises, for every defense there is, with the options of params.yaml."""

import inspect

import pytest
import torch
from conftest import SIZE, colour_split, tiny_model

from ngf import params, plugins, store
from ngf.defenses import Clean

DEFENSES = plugins.names("defenses")


def clean_split() -> Clean:
    split = colour_split(48, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), split.flip)


def purify(name, numbers, **changes):
    options = dict(numbers["defenses"][name])
    short = {"epochs": 2, "steps": 4, "views": 2}
    options |= {key: value for key, value in short.items() if key in options} | changes
    plugin = plugins.load("defenses", name)
    return plugin.purify(tiny_model(), clean_split(), **params.options(plugin.purify, options, ""))


@pytest.mark.parametrize("name", DEFENSES)
def test_it_sees_the_model_and_the_clean_split_alone(name):
    arguments = inspect.signature(plugins.load("defenses", name).purify).parameters.values()
    positional = [a.name for a in arguments if a.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == ["model", "clean"]


@pytest.mark.parametrize("name", DEFENSES)
def test_the_purified_model_is_finite_evaluable_and_storable(name, numbers, tmp_path):
    purified = purify(name, numbers)
    x_NCHW = torch.rand(4, 3, SIZE, SIZE)
    logits_NC = purified.model(x_NCHW)
    assert torch.isfinite(logits_NC).all()
    assert not purified.model.training
    assert (purified.tuned == 0) == (purified.steps == 0)
    store.save_model(tmp_path / "model", purified.model)
    assert torch.equal(store.load_model(tmp_path / "model")(x_NCHW), logits_NC)


@pytest.mark.parametrize("name", DEFENSES)
def test_same_seed_same_weights(name, numbers):
    first, again = (purify(name, numbers).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_none_changes_nothing(numbers):
    before, after = tiny_model().state_dict(), purify("none", numbers).model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def changed(name, numbers, **changes) -> set[str]:
    before, after = tiny_model().state_dict(), purify(name, numbers, **changes).model.state_dict()
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_finetune_moves_every_weight(numbers):
    weights = {key for key in tiny_model().state_dict() if key.endswith("weight")}
    assert weights <= changed("finetune", numbers)


def test_ngf_moves_no_convolution(numbers):
    modules = dict(tiny_model().named_modules())
    moved = {key.rpartition(".")[0] for key in changed("ngf", numbers)}
    assert moved
    assert not any(isinstance(modules[name], torch.nn.Conv2d) for name in moved)


def test_ngf_works_without_batch_norm(numbers):
    model = tiny_model()
    for module in list(model.net.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, torch.nn.BatchNorm2d):
                setattr(module, child, torch.nn.Identity())
    options = {**numbers["defenses"]["ngf"], "steps": 2, "views": 1}
    plugin = plugins.load("defenses", "ngf")
    purified = plugin.purify(model, clean_split(), **options)
    assert purified.tuned == sum(p.numel() for p in model.net[-1].parameters())
