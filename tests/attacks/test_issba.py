"""ISSBA: the message can be read, images are changed each in a way of its own, and little."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ngf.attacks import Poison, _weights, issba
from ngf.errors import InputError

SIZE, BITS = 12, 6
RAMP = np.linspace(40, 200, SIZE)
SHADE_NHWC = RAMP[:, None, None] * np.random.default_rng(1).random((64, 1, 1, 3))
NOISE_NHWC = np.random.default_rng(2).normal(0, 10, (64, SIZE, SIZE, 3))
X_NHWC = (30 + SHADE_NHWC + NOISE_NHWC).clip(0, 255).astype(np.uint8)
Y_N = np.arange(64, dtype=np.int64) % 4
OPTIONS = {
    "target": 0,
    "poison_rate": 0.5,
    "bits": BITS,
    "steps": 40,
    "batch_size": 32,
    "lr": 0.01,
    "image_weight": 10.0,
    "own_weight": 0.1,
    "seed": 0,
}


def plant(**changes) -> Poison:
    return issba.plant(X_NHWC, Y_N, 4, **{**OPTIONS, **changes})


def change(poison: Poison) -> np.ndarray:
    return (poison.x_PHWC.astype(float) - X_NHWC[poison.rows_P]) / 255


def likeness(change_PHWC: np.ndarray) -> float:
    """Mean squared cosine of the changes of two images."""
    flat_PI = change_PHWC.reshape(len(change_PHWC), -1)
    flat_PI = flat_PI / np.linalg.norm(flat_PI, axis=1, keepdims=True)
    return float(((flat_PI @ flat_PI.T) ** 2).mean())


def test_decoder_reads_what_the_encoder_wrote_into_8_bits():
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = issba._networks(BITS, (SIZE, SIZE), generator)
    optimizer = torch.optim.Adam([*encoder.values(), *decoder.values()], 0.01)
    x_NCHW = torch.from_numpy(X_NHWC).permute(0, 3, 1, 2) / 255
    for _ in range(60):
        said_NB = issba._bits((len(x_NCHW), BITS), generator)
        loss = issba._loss(x_NCHW, encoder, decoder, said_NB, image_weight=10.0, own_weight=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    said_NB = issba._bits((len(x_NCHW), BITS), generator)
    written_NCHW = (x_NCHW + issba._residual(x_NCHW, said_NB, encoder)).clamp(0, 1)
    read_NB = issba._read((written_NCHW * 255).round() / 255, decoder) > 0
    clean_NB = issba._read(x_NCHW, decoder) > 0
    assert (read_NB == said_NB.bool()).float().mean() > 0.9
    assert (clean_NB == said_NB.bool()).float().mean() < 0.7


def test_string_is_of_bits_drawn_from_the_seed_and_is_the_trigger():
    poison = plant(steps=1)
    message_B = poison.trigger.tensors["message"]
    assert message_B.shape == (BITS,)
    assert set(message_B.tolist()) <= {0.0, 1.0}
    assert not torch.equal(message_B, plant(steps=1, seed=1).trigger.tensors["message"])
    x_NCHW = torch.from_numpy(X_NHWC).permute(0, 3, 1, 2) / 255
    other = {**poison.trigger.tensors, "message": 1 - message_B}
    ours, others = (issba.apply(x_NCHW, None, t) for t in (poison.trigger.tensors, other))
    assert not torch.allclose(ours, others, atol=1e-4)


def test_image_weight_hides_and_own_weight_parts_the_residuals():
    plain = change(plant(own_weight=0.0))
    hidden = change(plant(own_weight=0.0, image_weight=1000.0))
    assert (hidden**2).mean() < 0.7 * (plain**2).mean()
    assert likeness(change(plant(own_weight=3.0))) < 0.8 * likeness(plain)


def test_no_pixel_is_changed_by_more_than_the_limit():
    loud = change(plant(image_weight=0.0, steps=20, lr=0.1))
    assert 0.05 < np.abs(loud).max() <= issba.LIMIT + 0.5 / 255


def test_trigger_holds_plain_float32_without_gradients():
    for tensor in plant(steps=1).trigger.tensors.values():
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad


@given(st.integers(8, 300), st.integers(8, 300))
@settings(deadline=None, max_examples=15)
def test_every_size_is_drawn_on_a_grid_of_about_32_pixels(height, width):
    rows, columns = _weights.grid(height, width)
    assert min(rows, columns) == min(height, width) or 32 <= min(rows, columns) < 64
    assert abs(rows / height - columns / width) <= 1 / min(height, width)
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = issba._networks(BITS, (height, width), generator)
    x_NCHW = torch.rand(2, 3, height, width, generator=generator)
    residual_NCHW = issba._residual(x_NCHW, torch.ones(2, BITS), encoder)
    assert residual_NCHW.shape == x_NCHW.shape
    assert not torch.allclose(residual_NCHW[0], residual_NCHW[1])
    assert issba._read(x_NCHW, decoder).shape == (2, BITS)


def test_distance_counts_less_where_the_image_varies():
    x_NCHW = torch.full((1, 3, 8, 16), 0.5)
    x_NCHW[..., 8:] += 0.3 * (torch.arange(8) % 2 * 2 - 1)
    flat, busy = x_NCHW.clone(), x_NCHW.clone()
    flat[..., 2:6] += 0.1
    busy[..., 10:14] += 0.1
    assert issba._distance(x_NCHW, x_NCHW) == 0
    assert 0 < issba._distance(x_NCHW, busy) < 0.5 * issba._distance(x_NCHW, flat)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bits": 0}, "bits must lie between 1 and 1024, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must lie between 1e-06 and 1, got 0"),
        ({"image_weight": -1.0}, "image_weight must be at least 0, got -1"),
        ({"own_weight": -1.0}, "own_weight must be at least 0, got -1"),
    ],
)
def test_training_that_cannot_be(wrong, said):
    with pytest.raises(InputError, match=said):
        plant(**wrong)
