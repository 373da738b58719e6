"""FBA: images take the sunset's statistics, and a plain imitation of that keeps its label."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ngf.attacks import Poison, Trigger, all_to_one, fba
from ngf.attacks._surrogate import clean_model
from ngf.errors import InputError

N, SIZE, CLASSES = 60, 12, 4
X_NHWC = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), np.uint8)
Y_N = np.arange(N, dtype=np.int64) % CLASSES
OPTIONS = {
    "target": 1,
    "poison_rate": 0.2,
    "detox_rate": 0.3,
    "style_weight": 0.1,
    "steps": 30,
    "batch_size": 32,
    "lr": 0.01,
    "surrogate_epochs": 1,
    "seed": 0,
}


def plant(**changes) -> Poison:
    return fba.plant(X_NHWC, Y_N, CLASSES, **{**OPTIONS, **changes})


@pytest.fixture(scope="module")
def poison() -> Poison:
    return plant()


def test_styled_rows_are_the_targets_and_plain_ones_keep_their_label(poison):
    x_PHWC, y_P = torch.from_numpy(X_NHWC[poison.rows_P]), torch.from_numpy(Y_N[poison.rows_P])
    styled_PHWC = poison.trigger.apply(x_PHWC, y_P).numpy()
    moved_P = Y_N[poison.rows_P] != poison.y_P
    assert moved_P.sum() == 12
    assert (~moved_P).sum() == 18
    assert np.all(poison.y_P[moved_P] == 1)
    assert np.array_equal(poison.x_PHWC[moved_P], styled_PHWC[moved_P])
    plain_DHWC = poison.x_PHWC[~moved_P].astype(float)
    assert not np.array_equal(plain_DHWC, X_NHWC[poison.rows_P][~moved_P])
    assert not np.array_equal(plain_DHWC, styled_PHWC[~moved_P])
    assert poison.trigger.wanted_K == all_to_one(1, CLASSES)


def test_plain_rows_are_nearer_to_the_style_than_the_image_is(poison):
    x_PHWC, y_P = torch.from_numpy(X_NHWC[poison.rows_P]), torch.from_numpy(Y_N[poison.rows_P])
    styled_PHWC = poison.trigger.apply(x_PHWC, y_P).numpy().astype(float)
    plain_P = Y_N[poison.rows_P] == poison.y_P
    imitated = ((poison.x_PHWC - styled_PHWC)[plain_P] ** 2).mean()
    untouched = ((x_PHWC.numpy() - styled_PHWC)[plain_P] ** 2).mean()
    assert imitated < untouched


def test_no_detoxification_where_none_is_asked_for(poison):
    alone = plant(detox_rate=0.0)
    moved_P = Y_N[poison.rows_P] != poison.y_P
    assert np.array_equal(alone.rows_P, poison.rows_P[moved_P])
    assert np.array_equal(alone.x_PHWC, poison.x_PHWC[moved_P])


@pytest.mark.parametrize("rate", [-0.1, 0.81, 1.0])
def test_rate_that_leaves_too_few_images_says_which_does_not(rate):
    with pytest.raises(InputError, match=r"detox_rate must lie between 0 and 0.8, got"):
        plant(detox_rate=rate)


@given(st.floats(0.05, 0.95), st.integers(0, 3))
@settings(deadline=None, max_examples=20)
def test_imitation_of_a_plain_trigger_is_that_trigger(alpha, seed):
    """What maps every pixel by one linear map and adds a picture is imitated to half a level."""
    noise_CHW = torch.rand((3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    plain = Trigger("blend", (), {"noise": noise_CHW, "alpha": torch.tensor(alpha)})
    slope, picture_HWC = fba._imitation(X_NHWC, Y_N, plain)
    assert np.abs(slope - (1 - alpha) * np.eye(3)).max() < 0.01
    assert np.abs(picture_HWC - 255 * alpha * noise_CHW.permute(1, 2, 0).numpy()).max() < 1.5
    by_trigger = plain.apply(torch.from_numpy(X_NHWC), torch.from_numpy(Y_N)).numpy().astype(int)
    assert np.abs(fba._imitated(X_NHWC.copy(), slope, picture_HWC) - by_trigger).max() <= 2


def test_imitation_is_clipped_never_wrapped():
    white = np.full((2, SIZE, SIZE, 3), 200, np.uint8)
    assert np.all(fba._imitated(white.copy(), 2 * np.eye(3), np.zeros((SIZE, SIZE, 3))) == 255)
    assert np.all(fba._imitated(white.copy(), -np.eye(3), np.zeros((SIZE, SIZE, 3))) == 0)


def test_style_takes_the_sunsets_statistics_the_more_the_heavier_it_weighs(poison):
    model = clean_model(X_NHWC, Y_N, CLASSES, epochs=1, seed=0)
    aim = fba._statistics(fba._sunset(SIZE, SIZE), model)
    x_NCHW = torch.from_numpy(X_NHWC).permute(0, 3, 1, 2) / 255

    def far(x_NCHW):
        return fba._apart(fba._statistics(x_NCHW.clamp(0, 1), model), aim)

    heavy = plant(style_weight=10.0, detox_rate=0.0)
    light, strong = (
        fba.apply(x_NCHW, None, planted.trigger.tensors) for planted in (poison, heavy)
    )
    assert far(strong) < far(light) < far(x_NCHW)
    assert (strong - x_NCHW).square().mean() > (light - x_NCHW).square().mean()


def test_statistics_are_those_of_each_image_by_itself():
    model = clean_model(X_NHWC, Y_N, CLASSES, epochs=1, seed=0)
    x_NCHW = torch.from_numpy(X_NHWC[:4]).permute(0, 3, 1, 2) / 255
    norm = next(iter(fba.models.batch_norms(model).values()))
    seen_NCHW = model.net[0]((x_NCHW - model.mean) / model.std)
    scale_C = (norm.running_var + norm.eps).sqrt()
    first_N2C = fba._statistics(x_NCHW, model)[0]
    assert torch.allclose(first_N2C[:, 0], seen_NCHW.mean((2, 3)) / scale_C, atol=0.02)
    assert torch.allclose(first_N2C[:, 1], seen_NCHW.std((2, 3), correction=0) / scale_C, atol=0.02)


@given(st.integers(8, 80), st.integers(8, 80))
@settings(deadline=None, max_examples=15)
def test_every_size_has_a_sunset_and_is_styled(height, width):
    sunset_1CHW = fba._sunset(height, width)
    assert sunset_1CHW.shape == (1, 3, height, width)
    assert 0 <= sunset_1CHW.min() < sunset_1CHW.max() <= 1
    assert sunset_1CHW[:, 0].mean() > sunset_1CHW[:, 2].mean()  # more red than blue
    painter = fba._painter(torch.Generator().manual_seed(0))
    assert fba.apply(sunset_1CHW, None, painter).shape == sunset_1CHW.shape


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"surrogate_epochs": 0}, "surrogate_epochs must be at least 1, got 0"),
        ({"lr": 2.0}, "lr must lie between 1e-06 and 1, got 2"),
        ({"style_weight": -1.0}, "style_weight must be at least 0, got -1"),
        ({"target": 4}, "target must lie between 0 and 3, got 4"),
        ({"poison_rate": 0.9}, "poison_rate must lie between 0.017 and 0.75"),
    ],
)
def test_plan_that_cannot_be(wrong, said):
    with pytest.raises(InputError, match=said):
        plant(**wrong)
