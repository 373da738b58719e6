"""Traffic signs, drawn by this module: 16 classes, 32x32 RGB, every image different.

A sign is a stack of flat-coloured shapes (`SIGNS`). Each image draws its sign's stack under a
random pose over a random background, hides part of some signs, and looks at the scene through
random light and a random camera. Most images are easy; blur, darkness and fading have long tails,
so that a few are as hard as the worst crops of a camera behind a windscreen.

Random numbers. Images come in blocks of `BLOCK`, each with a generator of its own, seeded by
(seed, split, number of the block), and a block is always drawn whole. An image thus depends on the
seed, the split and its position alone: asking for fewer images gives the beginning of the same
sequence. Every run of `len(SIGNS)` images is one permutation of the classes, so any beginning of
the sequence is balanced as well as can be.

Axes in names: N image, C colour channel, H row, W column, K colour of the palette.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ngf.datasets import Source
from ngf.datasets._products import product
from ngf.datasets._sdf import (
    Field,
    Floats,
    arrow,
    box,
    box_distance,
    car,
    coverage,
    disc,
    mirror,
    polygon,
    regular,
    strokes,
    text,
    union,
    within,
)
from ngf.errors import InputError
from ngf.progress import track

SIZE = 32  # pixels, both ways
BLOCK = 256  # images drawn at once; a multiple of the number of classes
LANES = 16  # sums beside each other in the blur along W, as the images of the tables had them
PIXEL = 2 / SIZE  # width of a pixel where the image spans [-1, 1]

# --- What is drawn --------------------------------------------------------------------------

PALETTE = {  # RGB in [0, 1], as new
    "white": (0.93, 0.93, 0.92),
    "red": (0.78, 0.09, 0.12),
    "blue": (0.06, 0.28, 0.66),
    "green": (0.05, 0.44, 0.25),
    "yellow": (0.95, 0.74, 0.08),
    "grey": (0.50, 0.50, 0.51),
    "black": (0.09, 0.09, 0.10),
}
COLOURS = tuple(PALETTE)

Layers = tuple[tuple[str, Field], ...]  # (colour, shape), from back to front


def _prohibition(*glyph: tuple[str, Field]) -> Layers:
    return ("red", disc(1)), ("white", disc(0.76)), *glyph


def _warning(*glyph: tuple[str, Field]) -> Layers:
    def triangle(size: float) -> Field:
        return polygon((0, -0.85 * size), (0.92 * size, 0.72 * size), (-0.92 * size, 0.72 * size),
                       rounding=0.1)  # fmt: skip

    return ("red", triangle(1)), ("white", triangle(0.64)), *glyph


def _mandatory(*glyph: tuple[str, Field]) -> Layers:
    return ("white", disc(1)), ("blue", disc(0.93)), *glyph


def _panel(colour: str, half_u: float, half_v: float, *glyph: tuple[str, Field]) -> Layers:
    edge = box(half_u, half_v, rounding=0.12)
    return ("white", edge), (colour, lambda u, v: edge(u, v) + 0.07), *glyph


_SIDE_ARROW = arrow(((-0.6, 0), (0.05, 0)), tip=(0.65, 0), head=0.45, width=0.3)
_BARS = strokes(*(((-0.8 + s, 0.8 + s), (0.8 + s, -0.8 + s)) for s in (-0.16, 0, 0.16)), width=0.1)
_ROAD = strokes(((-0.5, 0.62), (-0.15, -0.62)), ((0.5, 0.62), (0.15, -0.62)), width=0.16)
_BRIDGE = strokes(((-0.6, -0.12), (0.6, -0.12)), width=0.18)

SIGNS: dict[str, Layers] = {
    "limit_30": _prohibition(("black", text("30", 0.76, 0.17))),
    "limit_50": _prohibition(("black", text("50", 0.76, 0.17))),
    "limit_80": _prohibition(("black", text("80", 0.76, 0.17))),
    "end_of_limits": (
        ("grey", disc(1)),
        ("white", disc(0.92)),
        ("black", within(_BARS, disc(0.92))),
    ),
    "no_overtaking": _prohibition(
        ("red", car((-0.33, 0), 0.3)),
        ("black", car((0.33, 0), 0.3)),
    ),
    "no_entry": (("red", disc(1)), ("white", box(0.72, 0.19))),
    "stop": (
        ("white", regular(8, 1.06, turn=0.5)),
        ("red", regular(8, 0.97, turn=0.5)),
        ("white", text("STOP", 0.55, 0.13)),
    ),
    "yield": (
        ("red", regular(3, 1.2, turn=0.5, rounding=0.1)),
        ("white", regular(3, 0.68, turn=0.5, rounding=0.05)),
    ),
    "priority": (
        ("white", regular(4, 1.1, rounding=0.08)),
        ("yellow", regular(4, 0.78, rounding=0.05)),
    ),
    "danger": _warning(
        ("black", union(strokes(((0, -0.22), (0, 0.2)), width=0.2), disc(0.12, (0, 0.5)))),
    ),
    "signals": _warning(
        ("red", disc(0.15, (0, -0.2))),
        ("yellow", disc(0.15, (0, 0.14))),
        ("green", disc(0.15, (0, 0.48))),
    ),
    "bend": _warning(
        ("black", arrow(((0.12, 0.55), (0.12, 0.25), (-0.05, 0.08)), (-0.26, -0.2), 0.2, 0.17)),
    ),
    "turn_left": _mandatory(("white", mirror(_SIDE_ARROW))),
    "turn_right": _mandatory(("white", _SIDE_ARROW)),
    "parking": _panel("blue", 0.9, 0.9, ("white", text("P", 1.1, 0.24))),
    "motorway": _panel("green", 0.9, 0.9, ("white", union(_ROAD, _BRIDGE))),
}


class Scatter(NamedTuple):
    """Boxes strewn over the images; lengths in units of half the image."""

    probability: float  # that one box of this kind is there
    half_length: tuple[float, float]
    half_width: tuple[float, float]
    tilt: float  # radians: the long side is within +-tilt of the vertical
    offset: float  # the centre is within +-offset of the image's centre
    colours: tuple[tuple[float, float, float], ...]  # RGB, before jitter


_EARTHY = ((0.55, 0.66, 0.80), (0.24, 0.34, 0.16), (0.45, 0.43, 0.40), (0.50, 0.30, 0.22))
_LEAVES = ((0.20, 0.36, 0.12), (0.33, 0.40, 0.14), (0.38, 0.25, 0.12))
_LOUD = tuple(PALETTE.values())

CLUTTER = (  # houses, trees, other signs: behind the sign
    Scatter(0.7, (0.3, 1.5), (0.2, 0.8), np.pi, 1.2, _EARTHY),
    Scatter(0.7, (0.3, 1.5), (0.05, 0.3), 0.3, 1.2, _EARTHY),
    Scatter(0.5, (0.1, 0.5), (0.1, 0.4), np.pi, 1.2, _LOUD),
)
OCCLUDERS = (  # leaves, poles, stickers: in front of the sign
    Scatter(0.16, (0.15, 0.5), (0.10, 0.3), np.pi, 0.8, _LEAVES),
    Scatter(0.16, (0.10, 0.4), (0.05, 0.2), np.pi, 0.8, _LEAVES),
    Scatter(0.08, (2.5, 3.0), (0.04, 0.14), 0.3, 0.7, _EARTHY),
    Scatter(0.12, (0.08, 0.25), (0.06, 0.2), np.pi, 0.6, _LOUD),
)

# --- Random variation -----------------------------------------------------------------------


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Floats:
    return low + (high - low) * rng.random(shape, np.float32)


def _tail(rng: np.random.Generator, low: float, high: float, power: float, *shape: int) -> Floats:
    """Values in [low, high], mostly near `low`: the median is low + (high - low) / 2**power."""
    share: Floats = rng.random(shape, np.float32) ** power
    return low + (high - low) * share


def _paint(canvas_NCHW: Floats, cover_NHW: Floats, colour_NC: Floats) -> None:
    """Lay a colour over the canvas, in place, where `cover` (0 to 1) says so."""
    canvas_NCHW += cover_NHW[:, None] * (colour_NC[:, :, None, None] - canvas_NCHW)


def _grid() -> tuple[Floats, Floats]:
    """Pixel centres (x [1, 1, W], y [1, H, 1]) where the image spans [-1, 1]."""
    axis = ((np.arange(SIZE, dtype=np.float32) + 0.5) * PIXEL - 1).astype(np.float32)
    return axis[None, None, :], axis[None, :, None]


def _upsample(cells: int) -> Floats:
    """Matrix [SIZE, cells] that interpolates `cells` values linearly along one axis."""
    position = np.linspace(0, cells - 1, SIZE, dtype=np.float32)[:, None]
    weight: Floats = np.maximum(0, 1 - np.abs(position - np.arange(cells, dtype=np.float32)))
    return weight


def _texture(rng: np.random.Generator, n: int, channels: int) -> Floats:
    """Smooth noise [N, channels, H, W] around 0, coarse waves stronger than fine ones."""
    total = np.zeros((n, channels, SIZE, SIZE), np.float32)
    for cells, strength in ((2, 0.3), (5, 0.2), (12, 0.12)):
        up = _upsample(cells)
        waves = _uniform(rng, -strength, strength, n, channels, cells, cells)
        total += product(product(up, waves), up.T)
    return total


def _pick(rng: np.random.Generator, n: int, colours: tuple[tuple[float, ...], ...]) -> Floats:
    """One of the colours for each image, jittered: [N, C]."""
    table = np.array(colours, np.float32)
    return table[rng.integers(len(table), size=n)] + _uniform(rng, -0.08, 0.08, n, 3)


def _scatter(rng: np.random.Generator, canvas_NCHW: Floats, kinds: Iterable[Scatter]) -> None:
    """Paint at most one box of each kind on each image, in place."""
    n = len(canvas_NCHW)
    x, y = _grid()
    for kind in kinds:
        there = rng.random((n, 1, 1), np.float32) < kind.probability
        dx = x - _uniform(rng, -kind.offset, kind.offset, n, 1, 1)
        dy = y - _uniform(rng, -kind.offset, kind.offset, n, 1, 1)
        tilt = _uniform(rng, -kind.tilt, kind.tilt, n, 1, 1)
        width = _uniform(rng, *kind.half_width, n, 1, 1)
        length = _uniform(rng, *kind.half_length, n, 1, 1)
        round_by = _uniform(rng, 0, 1, n, 1, 1) * np.minimum(width, length)
        across = dx * np.cos(tilt) + dy * np.sin(tilt)
        along = dy * np.cos(tilt) - dx * np.sin(tilt)
        distance = box_distance(across, along, width - round_by, length - round_by) - round_by
        _paint(canvas_NCHW, coverage(distance, PIXEL) * there, _pick(rng, n, kind.colours))


def _background(rng: np.random.Generator, n: int) -> Floats:
    """Textured backdrop with clutter, [N, C, H, W]."""
    canvas = _pick(rng, n, _EARTHY)[:, :, None, None] + _texture(rng, n, 1)
    canvas = canvas + 0.25 * _texture(rng, n, 3)
    _scatter(rng, canvas, CLUTTER)
    return canvas


def _pose(rng: np.random.Generator, n: int) -> tuple[Floats, Floats, Floats]:
    """Where each pixel lies on the sign: u, v [N, H, W], and a pixel's width there [N, 1, 1]."""
    x, y = _grid()
    scale = _uniform(rng, 0.6, 0.88, n, 1, 1)  # the sign's radius, in half images
    squeeze = _uniform(rng, 0.85, 1.0, n, 1, 1)  # seen from the side: narrower
    turn = _uniform(rng, -12, 12, n, 1, 1) * np.float32(np.pi / 180)
    shear = _uniform(rng, -0.12, 0.12, n, 1, 1)
    x = x - _uniform(rng, -0.15, 0.15, n, 1, 1)
    y = y - _uniform(rng, -0.15, 0.15, n, 1, 1)
    near = scale * (
        1 + x * _uniform(rng, -0.12, 0.12, n, 1, 1) + y * _uniform(rng, -0.12, 0.12, n, 1, 1)
    )  # perspective: one side is nearer, hence larger
    u = (x * np.cos(turn) + y * np.sin(turn) + shear * y) / (near * squeeze)
    v = (y * np.cos(turn) - x * np.sin(turn)) / near
    return u, v, PIXEL / scale


def _paints(rng: np.random.Generator, n: int) -> Floats:
    """Each image's own palette, [N, K, C]: batches differ, and the sun fades all paint."""
    fresh = np.array(list(PALETTE.values()), np.float32)
    jittered = fresh + _uniform(rng, -0.05, 0.05, n, len(fresh), 3)
    grey = jittered.mean(axis=2, keepdims=True)
    fade = _tail(rng, 0, 0.65, 2, n, 1, 1)
    faded: Floats = jittered + fade * (0.5 * grey + 0.3 - jittered)
    return faded


def _signs(rng: np.random.Generator, canvas_NCHW: Floats, labels_N: NDArray[np.int64]) -> None:
    """Paint each image's sign and, under some, a post; in place."""
    n = len(labels_N)
    u, v, pixel = _pose(rng, n)
    paints = _paints(rng, n)
    post = coverage(box(0.1, 2, (0, 2))(u, v), pixel) * (rng.random((n, 1, 1), np.float32) < 0.6)
    _paint(canvas_NCHW, post, _pick(rng, n, (PALETTE["grey"],)))
    for label, layers in enumerate(SIGNS.values()):
        mine = np.flatnonzero(labels_N == label)
        part, pu, pv, pp = canvas_NCHW[mine], u[mine], v[mine], pixel[mine]
        for colour, shape in layers:
            _paint(part, coverage(shape(pu, pv), pp), paints[mine, COLOURS.index(colour)])
        canvas_NCHW[mine] = part


def _light(rng: np.random.Generator, canvas_NCHW: Floats) -> Floats:
    """Illuminate: gradient, shadow, colour cast, haze, tone curve and exposure."""
    n = len(canvas_NCHW)
    x, y = _grid()
    slope_x, slope_y = _uniform(rng, -0.3, 0.3, 2, n, 1, 1)
    angle = _uniform(rng, 0, 2 * np.pi, n, 1, 1)
    edge = x * np.cos(angle) + y * np.sin(angle) - _uniform(rng, -0.8, 0.8, n, 1, 1)
    shadow = 1 - _tail(rng, 0, 0.6, 3, n, 1, 1) * coverage(edge, 4 * PIXEL)
    light = (1 + slope_x * x + slope_y * y) * shadow
    cast = _uniform(rng, 0.85, 1.15, n, 3, 1, 1)
    haze = _tail(rng, 0, 0.6, 2.5, n, 1, 1, 1)  # lost contrast
    exposure = 1.25 * np.exp(-_tail(rng, 0, 1.6, 2.3, n, 1, 1, 1))
    gamma = np.exp(_uniform(rng, -0.4, 0.3, n, 1, 1, 1))
    lit = np.clip(canvas_NCHW, 0, 1) * light[:, None] * cast
    hazy = lit + haze * (0.6 * cast - lit)
    exposed: Floats = np.clip(np.clip(hazy, 0, 1) ** gamma * exposure, 0, 1)
    return exposed


def _blur_matrix(sigma_N: Floats) -> Floats:
    """Matrices [N, SIZE, SIZE] that blur one axis by a Gaussian of `sigma` pixels."""
    i = np.arange(SIZE, dtype=np.float32)
    weight: Floats = np.exp(-0.5 * ((i[:, None] - i) / sigma_N[:, None, None]) ** 2)
    weight /= weight.sum(axis=2, keepdims=True)  # at borders, the weights that remain
    return weight


def _camera(rng: np.random.Generator, scene_NCHW: Floats) -> NDArray[np.uint8]:
    """Blur (focus, and motion along one axis), sensor noise, 8 bits: [N, H, W, C]."""
    n = len(scene_NCHW)
    sigma = np.repeat(_tail(rng, 0.35, 2.0, 2.5, 1, n), 2, axis=0)  # pixels; along H, along W
    sigma[rng.integers(2, size=n), np.arange(n)] += _tail(rng, 0, 1.5, 3, n)
    rows, columns = _blur_matrix(sigma[0]), _blur_matrix(sigma[1])
    image = product(
        product(rows[:, None], scene_NCHW), columns.transpose(0, 2, 1)[:, None], lanes=LANES
    )
    read, shot = _tail(rng, 0.01, 0.05, 2, n, 1, 1, 1), _uniform(rng, 0.0, 0.05, n, 1, 1, 1)
    deviation = np.sqrt(read**2 + shot**2 * np.maximum(image, 0))  # shot noise grows with light
    image += deviation * rng.standard_normal(image.shape, np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)


# --- The data set ---------------------------------------------------------------------------


def _block(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw BLOCK images [BLOCK, H, W, 3] and their labels [BLOCK]."""
    rounds = np.tile(np.arange(len(SIGNS), dtype=np.int64), (BLOCK // len(SIGNS), 1))
    labels = rng.permuted(rounds, axis=1).ravel()
    canvas = _background(rng, BLOCK)
    _signs(rng, canvas, labels)
    _scatter(rng, canvas, OCCLUDERS)
    return _camera(rng, _light(rng, canvas)), labels


def _split(images: int, seed: int, split: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first `images` images of a split's endless sequence, with their labels."""
    x = np.empty((images, SIZE, SIZE, 3), np.uint8)
    y = np.empty(images, np.int64)
    starts = range(0, images, BLOCK)
    for start in track(starts, "draw signs", len(starts)):
        seeds = np.random.SeedSequence(seed, spawn_key=(split, start // BLOCK))
        stop = min(start + BLOCK, images)
        drawn_x, drawn_y = _block(np.random.default_rng(seeds))
        x[start:stop], y[start:stop] = drawn_x[: stop - start], drawn_y[: stop - start]
    return x, y


def load(*, train_images: int, test_images: int, seed: int) -> Source:
    """Draw the data set.

    train_images, test_images: how many, each at least one per class; seed: >= 0.
    Images are uint8 [N, 32, 32, 3] RGB in 0..255, labels int64 [N] in 0..15. The same arguments
    give the same bytes; train and test come from separate streams of the seed.
    """
    for name, images in (("train_images", train_images), ("test_images", test_images)):
        if images < len(SIGNS):
            need = f"{len(SIGNS)} (one image per class)"
            raise InputError(f"data set 'signs': {name} is {images}, the minimum is {need}")
    return Source(*_split(train_images, seed, 0), *_split(test_images, seed, 1), tuple(SIGNS))
