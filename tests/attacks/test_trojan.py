"""TrojanNN's patch against its definition, and its two label maps."""

import numpy as np
import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from ngf import models, plugins
from ngf.attacks import Poison, _trojan, all_to_all, all_to_one, parted
from ngf.errors import InputError

N, SIZE, CLASSES = 60, 12, 4
X_NHWC = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), np.uint8)
Y_N = np.arange(N, dtype=np.int64) % CLASSES
NAMES = ["trojan_one", "trojan_all"]
PLACE = {"size": 3, "bottom": 4, "right": 4, "units": 2, "steps": 2}


def plant(name, numbers, **changes) -> Poison:
    options = {**numbers["attacks"][name], **changes}
    own, _ = parted(options)
    return plugins.load("attacks", name).plant(X_NHWC, Y_N, CLASSES, **own)


def patch(**changes):
    return _trojan.patch(
        X_NHWC, Y_N, CLASSES, **{**PLACE, "surrogate_epochs": 1, "seed": 0, **changes}
    )


@pytest.fixture
def known(monkeypatch):
    """The attacker has a model that knows nothing, without training."""
    model = tiny_model()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    monkeypatch.setattr(_trojan, "clean_model", lambda *args, **options: model)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_patch_is_the_same_in_training_and_in_use_and_covers_nothing_else(name, numbers, known):
    poison = plant(name, numbers, size=3, bottom=2, right=5)
    rows, columns = slice(7, 10), slice(4, 7)
    levels_CHW = (poison.trigger.tensors["patch"] * 255).round()
    square_HWC = levels_CHW[:, rows, columns].permute(1, 2, 0).to(torch.uint8).numpy()
    used_NHWC = poison.trigger.apply(torch.from_numpy(X_NHWC), torch.from_numpy(Y_N)).numpy()
    for clean_NHWC, got_NHWC in (
        (X_NHWC[poison.rows_P], poison.x_PHWC),
        (X_NHWC, used_NHWC.copy()),
    ):
        assert np.all(got_NHWC[:, rows, columns] == square_HWC)
        got_NHWC[:, rows, columns] = clean_NHWC[:, rows, columns]
        assert np.array_equal(got_NHWC, clean_NHWC)


@given(st.integers(-1, 14), st.integers(-1, 12), st.integers(-1, 12))
@settings(deadline=None, max_examples=30)
def test_mask_lies_where_it_is_asked_to(size, bottom, right):
    place = {"size": size, "bottom": bottom, "right": right, "steps": 1}
    fits = size >= 1 and min(bottom, right) >= 0 and size + max(bottom, right) <= SIZE
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_trojan, "clean_model", lambda *args, **options: tiny_model())
        if not fits:
            with pytest.raises(InputError, match="does not fit an image of 12x12"):
                patch(**place)
            return
        tensors = patch(**place)
    inside = torch.nonzero(tensors["mask"])
    assert len(inside) == size**2
    assert inside.amax(0).tolist() == [SIZE - 1 - bottom, SIZE - 1 - right]
    assert inside.amin(0).tolist() == [SIZE - bottom - size, SIZE - right - size]
    assert tensors["patch"].min() >= 0
    assert tensors["patch"].max() <= 1
    assert torch.all(tensors["patch"][:, tensors["mask"] == 0] == 0)


def test_units_are_the_most_connected_ones(known):
    weight_KF = models.head(known).weight
    weight_KF.zero_()
    weight_KF[0, 5], weight_KF[2, 5], weight_KF[1, 9], weight_KF[1, 3] = -2.0, 2.0, -3.0, 1.0
    assert _trojan.connected(known, 3).tolist() == [5, 9, 3]


def test_excitement_is_the_mean_of_the_units(known):
    x_NCHW, unit_U = torch.rand(5, 3, SIZE, SIZE), torch.tensor([4, 1])
    features_NF = known.net[:-1]((x_NCHW - known.mean) / known.std)
    expected = features_NF[:, unit_U].mean().item()
    assert _trojan.excitement(known, x_NCHW, unit_U).item() == pytest.approx(expected, rel=0.02)


def test_patch_excites_more_than_chance_and_on_other_images_too(known):
    unit_U = _trojan.connected(known, 2)
    mask_HW = patch()["mask"]
    seen_NCHW, other_NCHW = torch.rand(2, 40, 3, SIZE, SIZE)
    made_CHW = _trojan.exciting(known, seen_NCHW, mask_HW, unit_U, steps=20, seed=0)
    chance = [
        _trojan.exciting(known, seen_NCHW, mask_HW, unit_U, steps=0, seed=seed)
        for seed in range(20)
    ]

    def excited(patch_CHW):
        return _trojan.excitement(
            known, _trojan.stamp(other_NCHW, mask_HW, patch_CHW), unit_U
        ).item()

    assert excited(made_CHW) > max(map(excited, chance))


def test_another_seed_makes_another_patch(known):
    assert torch.equal(patch()["patch"], patch()["patch"])
    assert not torch.equal(patch()["patch"], patch(seed=1)["patch"])


@pytest.mark.parametrize(("rate", "count"), [(1 / 60, 1), (0.25, 15), (1.0, 60)])
def test_all_to_all_draws_from_every_class_and_labels_the_next(rate, count, numbers, known):
    poison = plant("trojan_all", numbers, poison_rate=rate)
    assert len(set(poison.rows_P.tolist())) == count
    assert np.array_equal(poison.y_P, (Y_N[poison.rows_P] + 1) % CLASSES)
    assert poison.trigger.wanted_K == all_to_all(CLASSES)
    assert set(Y_N[poison.rows_P]) == set(range(CLASSES)) or count == 1


def test_all_to_one_wants_the_target(numbers, known):
    poison = plant("trojan_one", numbers, target=2, poison_rate=0.75)
    assert set(poison.y_P) == {2}
    assert poison.trigger.wanted_K == all_to_one(2, CLASSES)
    assert len(poison.rows_P) == np.sum(Y_N != 2)


@pytest.mark.parametrize("rate", [0, 1.1, -1])
def test_all_to_all_rate_that_cannot_be_met_says_which_can(rate, numbers, known):
    with pytest.raises(InputError, match=r"between 0.017 and 1 of the 60 training images"):
        plant("trojan_all", numbers, poison_rate=rate)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"units": 0}, "units must be at least 1, got 0"),
        ({"units": 1000}, "units must lie between 1 and 32, the head's inputs, got 1000"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"surrogate_epochs": 0}, "surrogate_epochs must be at least 1, got 0"),
    ],
)
def test_patch_that_cannot_be_made(name, change, said, numbers, known):
    with pytest.raises(InputError, match=said):
        plant(name, numbers, **change)
