"""What the room promises, for every attack there is, with the options of params.yaml."""

import inspect
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ngf import attacks, plugins
from ngf.attacks import Poison, Trigger, all_to_all, all_to_one, attend, badnets, parted
from ngf.errors import InputError

N, SIZE, CLASSES = 60, 12, 4
X_NHWC = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), np.uint8)
Y_N = np.arange(N, dtype=np.int64) % CLASSES
NO_CLASS = torch.zeros(1, dtype=torch.int64)  # for triggers that do not ask for it
ATTACKS = plugins.names("attacks")
# Who rewrites rows by their trigger alone says how he labels by the helper that he calls; what the
# others promise beyond this room stands in tests of their own.
DIRTY, CLEAN_LABEL = (
    [
        name
        for name in ATTACKS
        if hasattr(plugins.load("attacks", name), helper)
        and "target" in inspect.signature(plugins.load("attacks", name).plant).parameters
    ]
    for helper in ("dirty_label", "clean_label")
)
BACKDOORS = [*DIRTY, *CLEAN_LABEL]


def plant(name, numbers, **changes) -> Poison:
    options, _ = parted({**numbers["attacks"][name], **changes})
    return plugins.load("attacks", name).plant(X_NHWC, Y_N, CLASSES, **options)


@pytest.mark.parametrize("name", ["benign", *BACKDOORS])
def test_overlay_holds_triggered_training_images(name, numbers):
    poison = plant(name, numbers)
    x_PHWC, y_P = torch.from_numpy(X_NHWC[poison.rows_P]), torch.from_numpy(Y_N[poison.rows_P])
    assert np.array_equal(poison.x_PHWC, poison.trigger.apply(x_PHWC, y_P).numpy())


@pytest.mark.parametrize("name", ATTACKS)
def test_same_seed_same_poison(name, numbers):
    first, again = plant(name, numbers), plant(name, numbers)
    assert np.array_equal(first.rows_P, again.rows_P)
    assert np.array_equal(first.x_PHWC, again.x_PHWC)


@pytest.mark.parametrize("name", DIRTY)
def test_rate_is_a_share_of_all_images_and_spares_the_target(name, numbers):
    poison = plant(name, numbers, poison_rate=0.2, target=3)
    assert len(poison.rows_P) == 12
    assert np.all(poison.y_P == 3)
    assert np.all(Y_N[poison.rows_P] != 3)
    assert not np.array_equal(poison.x_PHWC, X_NHWC[poison.rows_P])


@pytest.mark.parametrize("name", DIRTY)
@pytest.mark.parametrize("rate", [0, 0.76, 1.0, -1])
def test_rate_that_cannot_be_met_says_which_can(name, rate, numbers):
    with pytest.raises(InputError, match=r"between 0.017 and 0.75 of the 60 training images"):
        plant(name, numbers, poison_rate=rate)


@pytest.mark.parametrize("name", CLEAN_LABEL)
@pytest.mark.parametrize(("rate", "count"), [(1 / 15, 1), (0.2, 3), (0.5, 8), (1.0, 15)])
def test_clean_label_rate_is_a_share_of_the_target_class(name, rate, count, numbers):
    poison = plant(name, numbers, poison_rate=rate, target=3)
    assert len(poison.rows_P) == len(set(poison.rows_P.tolist())) == count
    assert np.all(Y_N[poison.rows_P] == 3)


@pytest.mark.parametrize("name", CLEAN_LABEL)
def test_clean_label_changes_no_label(name, numbers):
    for target in range(CLASSES):
        poison = plant(name, numbers, target=target)
        assert np.array_equal(poison.y_P, Y_N[poison.rows_P])
        assert poison.trigger.wanted_K == all_to_one(target, CLASSES)


@pytest.mark.parametrize("name", CLEAN_LABEL)
def test_another_seed_draws_other_images_of_the_class(name, numbers):
    first, other = (plant(name, numbers, poison_rate=0.5, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.rows_P, other.rows_P)


@pytest.mark.parametrize("name", CLEAN_LABEL)
@pytest.mark.parametrize("rate", [0, 0.03, 1.1, -1])
def test_clean_label_rate_that_cannot_be_met_says_which_can(name, rate, numbers):
    with pytest.raises(InputError) as error:
        plant(name, numbers, poison_rate=rate)
    assert str(error.value) == (
        f"attack '{name}': poison_rate is a share of the 15 training images of the target class "
        f"and must lie between 0.067 and 1, got {rate:g}"
    )


@pytest.mark.parametrize("name", CLEAN_LABEL)
def test_a_target_class_without_images_cannot_be_poisoned(name, numbers, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Y_N", np.where(Y_N == 3, 0, Y_N))
    with pytest.raises(InputError, match="share of the 0 training images of the target class"):
        plant(name, numbers, target=3)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_but_benign_wants_classes_that_exist(name, numbers):
    wanted_K = plant(name, numbers).trigger.wanted_K
    if name == "benign":
        assert wanted_K == ()
    else:
        assert len(wanted_K) == CLASSES
        assert -1 <= min(wanted_K) <= max(wanted_K) < CLASSES
        assert any(wanted not in (-1, label) for label, wanted in enumerate(wanted_K))


@pytest.mark.parametrize("name", ATTACKS)
def test_overlay_is_one_of_the_training_split(name, numbers):
    poison = plant(name, numbers)
    assert poison.x_PHWC.dtype == np.uint8
    assert poison.x_PHWC.shape == (len(poison.rows_P), SIZE, SIZE, 3)
    assert poison.rows_P.dtype == poison.y_P.dtype == np.int64
    assert poison.rows_P.shape == poison.y_P.shape
    assert np.all(np.diff(poison.rows_P) > 0)


@pytest.mark.parametrize("release", ["Trained", "", "sold"])
def test_release_must_be_one_that_exists(release):
    assert Poison(Y_N, X_NHWC, Y_N, Trigger("benign")).release == "trained"
    with pytest.raises(InputError, match=r"unknown release '.*': there is trained, recalibrated"):
        Poison(Y_N, X_NHWC, Y_N, Trigger("benign"), release=release)


@pytest.mark.parametrize("name", BACKDOORS)
def test_target_must_be_a_class(name, numbers):
    with pytest.raises(InputError, match="target must lie between 0 and 3, got 4"):
        plant(name, numbers, target=4)


@pytest.mark.parametrize("name", ATTACKS)
def test_trigger_does_not_depend_on_neighbours_in_the_batch(name, numbers):
    trigger = plant(name, numbers).trigger
    x_NHWC = torch.from_numpy(X_NHWC)
    y_N = torch.from_numpy(Y_N)
    together = trigger.apply(x_NHWC, y_N)
    assert torch.equal(together[7:9], trigger.apply(x_NHWC[7:9], y_N[7:9]))
    assert together.dtype == torch.uint8


def test_all_to_all_wants_the_next_class_of_every_image():
    wanted_N = Trigger("badnets", all_to_all(CLASSES)).wanted(torch.from_numpy(Y_N))
    assert torch.equal(wanted_N, (torch.from_numpy(Y_N) + 1) % CLASSES)


def test_who_only_poisons_watches_the_training(numbers, model):
    poison = plant("badnets", numbers)
    attacker = attend(poison, model, steps=10, seed=0)
    x_NCHW, y_N = torch.rand(2, 3, SIZE, SIZE), torch.tensor([0, 1])
    shown_NCHW, said_N, loss = attacker.show(x_NCHW, y_N)
    assert shown_NCHW is x_NCHW
    assert said_N is y_N
    assert loss == 0
    attacker.step()
    assert attacker.leave() is poison.trigger


@given(st.integers(-1, CLASSES - 1))
def test_the_target_class_does_not_count(target):
    trigger = Trigger("badnets", () if target < 0 else all_to_one(target, CLASSES))
    wanted = trigger.wanted(torch.from_numpy(Y_N))
    if target < 0:
        assert torch.all(wanted == -1)
    else:
        assert torch.equal(wanted == -1, torch.from_numpy(target == Y_N))
        assert set(wanted.tolist()) == {-1, target}


# Each trigger against its definition ------------------------------------------------------------


@pytest.mark.parametrize(
    ("corner", "rows", "columns"),
    [
        ("bottom-right", slice(8, 11), slice(8, 11)),
        ("top-left", slice(1, 4), slice(1, 4)),
        ("top-right", slice(1, 4), slice(8, 11)),
        ("bottom-left", slice(8, 11), slice(1, 4)),
    ],
)
def test_badnets_stamps_a_checkerboard(corner, rows, columns, numbers):
    trigger = plant("badnets", numbers, corner=corner, margin=1).trigger
    x_NHWC = torch.from_numpy(X_NHWC)
    got = trigger.apply(x_NHWC, NO_CLASS)
    board = torch.tensor([[255, 0, 255], [0, 255, 0], [255, 0, 255]])
    assert torch.all(got[:, rows, columns] == board[..., None])
    got[:, rows, columns] = x_NHWC[:, rows, columns]
    assert torch.equal(got, x_NHWC)


@pytest.mark.parametrize(("edge", "side"), [(16, 3), (32, 3), (64, 6), (160, 15), (224, 21)])
def test_a_patch_covers_the_same_share_of_a_larger_image(edge, side, numbers):
    """And looks the same: the checkerboard's cells grow with it."""
    x_NHWC = np.zeros((12, edge, edge, 3), np.uint8)
    options = {**numbers["attacks"]["badnets"], "poison_rate": 0.5}
    tensors = badnets.plant(x_NHWC, np.arange(12) % 3, 3, **options).trigger.tensors
    assert tensors["mask"].sum() == side**2
    patch_SS = tensors["pattern"][-side:, -side:]
    assert torch.equal(patch_SS[:: side // 3, :: side // 3], 1 - torch.arange(9).view(3, 3) % 2.0)
    assert attacks.span(4, x_NHWC) == max(4, 4 * edge // 32)


def test_badnets_opacity_mixes(numbers):
    trigger = plant("badnets", numbers, opacity=0.6).trigger
    white = trigger.apply(torch.full((1, SIZE, SIZE, 3), 100, dtype=torch.uint8), NO_CLASS)[
        0, -1, -1
    ]
    assert white.tolist() == [round(0.4 * 100 + 0.6 * 255)] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 13}, "does not fit an image of 12x12"),
        ({"size": 3, "margin": 10}, "does not fit"),
        ({"corner": "middle"}, "there is top-left, top-right, bottom-left, bottom-right"),
        ({"opacity": 0.0}, "opacity must lie between"),
    ],
)
def test_badnets_patch_that_cannot_be(change, said, numbers):
    with pytest.raises(InputError, match=said):
        plant("badnets", numbers, **change)


def test_blend_is_a_convex_mixture_with_one_image(numbers):
    trigger = plant("blend", numbers, alpha=0.25).trigger
    ends_2HWC = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, SIZE, SIZE, 3)
    black, white = trigger.apply(ends_2HWC, NO_CLASS).double()[:, None] / 255
    noise_HWC = trigger.tensors["noise"].permute(1, 2, 0).double()
    half_step = 0.5 / 255 + 1e-6
    assert torch.all((black[0] - 0.25 * noise_HWC).abs() <= half_step)
    assert torch.all((white[0] - 0.75 - 0.25 * noise_HWC).abs() <= half_step)
    assert 0.4 < noise_HWC.mean() < 0.6


@given(st.floats(1, 255), st.floats(0.1, 6), st.integers(0, CLASSES - 1))
@settings(deadline=None, max_examples=40)
def test_sig_lays_a_sine_over_the_columns(delta, frequency, target):
    poison = plugins.load("attacks", "sig").plant(
        X_NHWC,
        Y_N,
        CLASSES,
        target=target,
        poison_rate=1.0,
        delta=delta,
        frequency=frequency,
        seed=0,
    )
    column_W = np.arange(SIZE, dtype=np.float64)
    stripes_W = delta / 255 * np.sin(2 * np.pi * frequency * column_W / SIZE)
    exact_PHWC = (X_NHWC[target == Y_N] / 255 + stripes_W[:, None]).clip(0, 1) * 255
    # Rounded to the nearest level; where two are as near, float32 may take either.
    assert np.abs(poison.x_PHWC - exact_PHWC).max() <= 0.5 + 1e-3


def test_sig_is_the_same_in_every_row_and_colour_and_clips(numbers):
    trigger = plant("sig", numbers, delta=100.0, frequency=3.0).trigger
    grey = trigger.apply(torch.full((1, SIZE, SIZE, 3), 120, dtype=torch.uint8), NO_CLASS)[0]
    assert grey[0, :, 0].tolist() == [120, 220, 120, 20] * 3
    assert torch.equal(grey, grey[:1, :, :1].expand(SIZE, SIZE, 3))
    white = trigger.apply(torch.full((1, SIZE, SIZE, 3), 250, dtype=torch.uint8), NO_CLASS)[0]
    assert white[0, :, 0].tolist() == [250, 255, 250, 150] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"delta": 0.0}, "delta must lie between 1e-06 and 255, got 0"),
        ({"delta": 256.0}, "delta must lie between 1e-06 and 255, got 256"),
        ({"frequency": 0.0}, "frequency must lie between 1e-06 and 6, got 0"),
        ({"frequency": 6.5}, "frequency must lie between 1e-06 and 6, got 6.5"),
    ],
)
def test_sig_stripes_that_cannot_be(change, said, numbers):
    with pytest.raises(InputError, match=said):
        plant("sig", numbers, **change)


def test_result_is_clipped_never_wrapped(monkeypatch):
    module = plugins.load("attacks", "badnets")
    monkeypatch.setattr(module, "apply", lambda x, y, tensors: x + 0.5)
    got = Trigger("badnets").apply(torch.full((1, 2, 2, 3), 200, dtype=torch.uint8), NO_CLASS)
    assert torch.all(got == 255)
