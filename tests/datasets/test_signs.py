"""The drawn traffic signs: a fixed sequence of balanced, distinct, recognisable images."""

import numpy as np
import pytest

from ngf.datasets import Source
from ngf.datasets._sdf import box, coverage, disc, mirror, polygon, strokes, text
from ngf.datasets.signs import BLOCK, COLOURS, PALETTE, SIGNS, SIZE, load

TRAIN, TEST, SEED = 4 * BLOCK + 50, 100, 7  # both end within a block


@pytest.fixture(scope="module")
def source() -> Source:
    return load(train_images=TRAIN, test_images=TEST, seed=SEED)


def test_shapes_and_types(source: Source) -> None:
    for x, y, images in (
        (source.x_train_NHWC, source.y_train_N, TRAIN),
        (source.x_test_NHWC, source.y_test_N, TEST),
    ):
        assert x.shape == (images, SIZE, SIZE, 3)
        assert x.dtype == np.uint8
        assert y.shape == (images,)
        assert y.dtype == np.int64
        assert x.flags.c_contiguous
    assert source.classes == tuple(SIGNS)
    assert len(source.classes) == 16


def test_classes_are_balanced_and_shuffled(source: Source) -> None:
    for y in (source.y_train_N, source.y_test_N):
        counts = np.bincount(y, minlength=len(SIGNS))
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(source.y_train_N[:16], source.y_train_N[16:32])


def test_fewer_images_are_the_beginning_of_the_same_sequence(source: Source) -> None:
    """Also shows that the same seed gives the same bytes, and that the splits do not interact."""
    fewer = load(train_images=BLOCK + 3, test_images=16, seed=SEED)
    assert np.array_equal(fewer.x_train_NHWC, source.x_train_NHWC[: BLOCK + 3])
    assert np.array_equal(fewer.y_train_N, source.y_train_N[: BLOCK + 3])
    assert np.array_equal(fewer.x_test_NHWC, source.x_test_NHWC[:16])
    assert np.array_equal(fewer.y_test_N, source.y_test_N[:16])


def test_another_seed_gives_other_images(source: Source) -> None:
    other = load(train_images=16, test_images=16, seed=SEED + 1)
    assert (other.x_train_NHWC != source.x_train_NHWC[:16]).any(axis=(1, 2, 3)).all()
    assert not np.array_equal(other.y_train_N, source.y_train_N[:16])


def test_no_image_occurs_twice_within_or_across_splits(source: Source) -> None:
    both = np.concatenate([source.x_train_NHWC, source.x_test_NHWC])
    assert len({image.tobytes() for image in both}) == TRAIN + TEST


def test_images_use_the_range_of_light(source: Source) -> None:
    brightness = source.x_train_NHWC.mean(axis=(1, 2, 3))
    assert 60 < np.median(brightness) < 150
    assert brightness.min() < 40
    assert brightness.max() > 180


def test_mean_images_tell_the_classes_apart_up_to_look_alikes(source: Source) -> None:
    """Each class's mean over one half is nearest, over the other half, to its own or a twin's."""
    alike = {"limit_30": "limit", "limit_50": "limit", "limit_80": "limit"}
    alike |= dict.fromkeys(("danger", "signals", "bend"), "warning")
    groups = np.array([alike.get(name, name) for name in source.classes])
    x = source.x_train_NHWC.astype(np.float32)
    x = (x - x.mean(axis=(1, 2), keepdims=True)) / (x.std(axis=(1, 2, 3), keepdims=True) + 8)
    half = np.arange(TRAIN) < TRAIN // 2
    first, second = (
        np.stack([x[part & (source.y_train_N == label)].mean(axis=0) for label in range(16)])
        for part in (half, ~half)
    )
    gaps = np.square(first[:, None] - second[None]).mean(axis=(2, 3, 4))
    assert groups[gaps.argmin(axis=1)].tolist() == groups.tolist()


def test_every_pair_of_signs_differs_when_seen_plainly() -> None:
    """Front view, no nuisance: even look-alikes differ in a few per cent of their area."""
    axis = np.linspace(-1, 1, 64, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    views = []
    for layers in SIGNS.values():
        view = np.full((64, 64, 3), 0.5, np.float32)
        for colour, shape in layers:
            assert colour in COLOURS
            cover = coverage(shape(u, v), 2 / 64)
            assert cover.dtype == np.float32
            assert cover.max() == 1
            view += cover[..., None] * (np.array(PALETTE[colour], np.float32) - view)
        views.append(view)
    for i, one in enumerate(views):
        for other in views[:i]:
            assert (np.abs(one - other).max(axis=2) > 0.3).mean() > 0.02


@pytest.mark.parametrize("few", ["train_images", "test_images"])
@pytest.mark.parametrize("images", [15, 0, -1])
def test_too_few_images_are_refused_in_one_line(few: str, images: int) -> None:
    sizes = {"train_images": 16, "test_images": 16, few: images}
    with pytest.raises(ValueError, match=rf"^[^\n]*{few} is {images}, the minimum is 16[^\n]*$"):
        load(**sizes, seed=SEED)


def _at(*points: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    u, v = np.array(points, np.float32).T
    return u, v


def test_shapes_measure_signed_distance() -> None:
    u, v = _at((0, 0), (3, 4), (0, 2))
    square = polygon((-1, -1), (1, -1), (1, 1), (-1, 1))
    assert disc(1)(u, v) == pytest.approx([-1, 4, 1])
    assert box(1, 1)(u, v) == pytest.approx([-1, np.hypot(2, 3), 1])
    assert square(u, v) == pytest.approx(box(1, 1)(u, v))
    assert strokes(((-1, 0), (1, 0)), width=0.5)(u, v) == pytest.approx(
        [-0.25, np.hypot(2, 4) - 0.25, 1.75]
    )


def test_mirror_exchanges_left_and_right() -> None:
    u, v = _at((0.5, 0), (-0.5, 0))
    dot = disc(0.1, at=(0.5, 0))
    assert mirror(dot)(u, v) == pytest.approx(dot(u, v)[::-1])


def test_text_is_centred() -> None:
    axis = np.linspace(-1, 1, 81, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    ink = text("80", 1.0, 0.2)(u, v) < 0
    assert not np.array_equal(ink, ink[:, ::-1])  # an 8 and a 0, not twice the same
    columns, rows = np.flatnonzero(ink.any(axis=0)), np.flatnonzero(ink.any(axis=1))
    assert columns[0] + columns[-1] == rows[0] + rows[-1] == 80
