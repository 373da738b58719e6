"""What the room promises, for every defense there is, with the options of params.yaml."""

import copy
import inspect

import pytest
import torch
from conftest import SIZE, colour_split, tiny_model

from ngf import params, plugins, store, trail
from ngf.defenses import Clean

DEFENSES = plugins.names("defenses")


def clean_split() -> Clean:
    split = colour_split(48, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), split.flip)


def short_options(name, numbers, **changes):
    options = dict(numbers["defenses"][name])
    short = {"epochs": 2, "steps": 4, "views": 2, "search": 6, "rounds": 2, "inner": 1}
    short |= {"teacher_epochs": 1, "unlearn_steps": 2}
    options |= {key: value for key, value in short.items() if key in options} | changes
    return params.options(plugins.load("defenses", name).purify, options, "")


def purify(name, numbers, *, marks=0, model=None, **changes):
    model, options = model or tiny_model(), short_options(name, numbers, **changes)
    with trail.recording(model, marks):
        return plugins.load("defenses", name).purify(model, clean_split(), **options)


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


@pytest.mark.parametrize("name", DEFENSES)
def test_every_gradient_step_is_marked_and_recording_changes_nothing(name, numbers, monkeypatch):
    several = {"batch_size": 16} if "batch_size" in numbers["defenses"][name] else {}
    plain, marked = purify(name, numbers, **several), []
    mark, victim = trail.mark, tiny_model()

    def listen(model, step, steps):
        if model is victim:  # and no teacher or other copy
            marked.append((step, steps))
        mark(model, step, steps)

    monkeypatch.setattr(trail, "mark", listen)
    recorded = purify(name, numbers, marks=3, model=victim, **several)
    assert marked == [(step, plain.steps) for step in range(1, plain.steps + 1)]
    before, after = plain.model.state_dict(), recorded.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", DEFENSES)
def test_the_way_of_the_given_model_is_recorded(name, numbers):
    """Its last snapshot is the purified model, so there is a way to show and to step back on."""
    model, options = tiny_model(), short_options(name, numbers)
    start = copy.deepcopy(model.state_dict())
    with trail.recording(model, 3) as snapshots:
        purified = plugins.load("defenses", name).purify(model, clean_split(), **options)
    assert bool(snapshots) == (purified.steps > 0)
    for step, tensors in snapshots[-1:]:
        assert step == purified.steps
        last = {**start, **tensors}
        parameters = dict(purified.model.named_parameters())
        assert all(torch.equal(last[key], value) for key, value in parameters.items())


def test_none_changes_nothing(numbers):
    before, after = tiny_model().state_dict(), purify("none", numbers).model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def changed(name, numbers, **changes) -> set[str]:
    before, after = tiny_model().state_dict(), purify(name, numbers, **changes).model.state_dict()
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_finetune_moves_every_weight(numbers):
    weights = {key for key in tiny_model().state_dict() if key.endswith("weight")}
    assert weights <= changed("finetune", numbers)


def test_ngf_works_without_batch_norm(numbers):
    model = tiny_model()
    for module in list(model.net.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, torch.nn.BatchNorm2d):
                setattr(module, child, torch.nn.Identity())
    options = {**numbers["defenses"]["ngf"], "search": 6, "steps": 2, "views": 1}
    plugin = plugins.load("defenses", "ngf")
    purified = plugin.purify(model, clean_split(), **options)
    assert purified.tuned == sum(p.numel() for p in model.net[-1].parameters())
