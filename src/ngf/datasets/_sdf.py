"""Shapes and glyphs as signed distance functions.

A `Field` maps coordinates (u to the right, v downwards; a sign's radius is 1) to the signed
distance from a shape's outline: negative inside, positive outside, in the same unit. Distances
make anti-aliased edges cheap (`coverage`) and shapes compose with min, max and offsets.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Field = Callable[[Floats, Floats], Floats]
Point = tuple[float, float]
Line = Sequence[Point]


def coverage(distance: Floats, pixel: Floats | float) -> Floats:
    """Share of a pixel [0, 1] inside the shape, for a pixel of width `pixel`."""
    inside: Floats = np.clip(0.5 - distance / pixel, 0, 1)
    return inside


# --- Shapes ---------------------------------------------------------------------------------


def box_distance(u: Floats, v: Floats, half_u: Floats | float, half_v: Floats | float) -> Floats:
    """Distance to the axis-parallel box |u| <= half_u, |v| <= half_v (arguments broadcast)."""
    du, dv = np.abs(u) - half_u, np.abs(v) - half_v
    outside = np.hypot(np.maximum(du, 0), np.maximum(dv, 0))
    return outside + np.minimum(np.maximum(du, dv), 0)


def disc(radius: float, at: Point = (0, 0)) -> Field:
    return lambda u, v: np.hypot(u - at[0], v - at[1]) - radius


def box(half_u: float, half_v: float, at: Point = (0, 0), rounding: float = 0) -> Field:
    """Box of the given half sizes; `rounding` is the radius of its corners."""
    return lambda u, v: (
        box_distance(u - at[0], v - at[1], half_u - rounding, half_v - rounding) - rounding
    )


def polygon(*corners: Point, rounding: float = 0) -> Field:
    """Simple polygon, grown by `rounding`, which also rounds its corners."""
    edges = list(zip(corners, (*corners[1:], corners[0]), strict=True))

    def distance(u: Floats, v: Floats) -> Floats:
        inside = np.zeros(u.shape, bool)
        for (ax, ay), (bx, by) in edges:  # even-odd rule: count edges crossed going right
            if ay != by:
                inside ^= ((v < ay) != (v < by)) & (u < ax + (v - ay) * ((bx - ax) / (by - ay)))
        away = _to_lines(u, v, edges)
        away[inside] *= -1
        return away - rounding

    return distance


def regular(corners: int, radius: float, turn: float = 0, rounding: float = 0) -> Field:
    """Regular polygon within a circle; one corner points up, `turn` corner steps clockwise."""
    angles = (np.arange(corners) + turn) * (2 * np.pi / corners)
    inner = radius - rounding
    points = [(inner * float(np.sin(a)), -inner * float(np.cos(a))) for a in angles]
    return polygon(*points, rounding=rounding)


def strokes(*lines: Line, width: float) -> Field:
    """Broken lines drawn with a round pen of the given width."""
    segments = [pair for line in lines for pair in pairwise(line)]
    return lambda u, v: _to_lines(u, v, segments) - width / 2


def _to_lines(u: Floats, v: Floats, segments: Sequence[tuple[Point, Point]]) -> Floats:
    """Unsigned distance to the nearest of the line segments."""
    nearest = np.full(u.shape, np.inf, np.float32)
    for (ax, ay), (bx, by) in segments:
        du, dv, eu, ev = u - ax, v - ay, bx - ax, by - ay
        along = np.clip((du * eu + dv * ev) * (1 / (eu * eu + ev * ev)), 0, 1)
        np.minimum(nearest, (du - along * eu) ** 2 + (dv - along * ev) ** 2, out=nearest)
    return np.sqrt(nearest)


# --- Combinations ---------------------------------------------------------------------------


def union(*fields: Field) -> Field:
    return lambda u, v: reduce(np.minimum, (field(u, v) for field in fields))


def within(field: Field, mask: Field) -> Field:
    """The part of `field` that lies inside `mask`."""
    return lambda u, v: np.maximum(field(u, v), mask(u, v))


def mirror(field: Field) -> Field:
    """Left and right exchanged."""
    return lambda u, v: field(-u, v)


# --- Glyphs ---------------------------------------------------------------------------------

# Pen strokes of the characters, in a cell 2 wide and 4 high, y downwards.
_OVAL: Line = (
    (0.6, 0), (1.4, 0), (2, 0.7), (2, 3.3), (1.4, 4), (0.6, 4), (0, 3.3), (0, 0.7), (0.6, 0),
)  # fmt: skip
_CHARACTERS: dict[str, tuple[Line, ...]] = {
    "0": (_OVAL,),
    "3": (
        ((0, 0.6), (0.6, 0), (1.4, 0), (2, 0.6), (2, 1.3), (1.4, 1.9), (0.8, 1.9)),
        ((1.4, 1.9), (2, 2.5), (2, 3.4), (1.4, 4), (0.6, 4), (0, 3.4)),
    ),
    "5": (
        ((1.9, 0), (0.3, 0), (0.1, 1.9), (1.3, 1.6), (2, 2.3), (2, 3.3), (1.4, 4), (0.6, 4),
         (0, 3.4)),
    ),
    "8": (
        ((1, 1.9), (0.2, 1.3), (0.2, 0.6), (0.7, 0), (1.3, 0), (1.8, 0.6), (1.8, 1.3), (1, 1.9)),
        ((1, 1.9), (0, 2.6), (0, 3.4), (0.6, 4), (1.4, 4), (2, 3.4), (2, 2.6), (1, 1.9)),
    ),
    "O": (_OVAL,),
    "P": (((0, 4), (0, 0), (1.3, 0), (2, 0.6), (2, 1.6), (1.3, 2.2), (0, 2.2)),),
    "S": (
        ((2, 0.6), (1.4, 0), (0.6, 0), (0, 0.6), (0, 1.3), (0.6, 1.8), (1.4, 2.1), (2, 2.7),
         (2, 3.4), (1.4, 4), (0.6, 4), (0, 3.4)),
    ),
    "T": (((0, 0), (2, 0)), ((1, 0), (1, 4))),
}  # fmt: skip


def text(string: str, height: float, width: float) -> Field:
    """Characters in a row, centred on the origin; `width` is the pen's."""
    unit = height / 4
    step = 2 * unit + 1.8 * width  # a clear gap of 0.8 pens between neighbours
    left = -(step * (len(string) - 1) + 2 * unit) / 2
    lines = [
        [(left + i * step + x * unit, (y - 2) * unit) for x, y in line]
        for i, character in enumerate(string)
        for line in _CHARACTERS[character]
    ]
    return strokes(*lines, width=width)


def arrow(tail: Line, tip: Point, head: float, width: float) -> Field:
    """A line `tail` of the given pen width that ends in a triangular head at `tip`."""
    (x, y), (tx, ty) = tail[-1], tip
    length = float(np.hypot(tx - x, ty - y))
    side_x, side_y = -(ty - y) / length * head, (tx - x) / length * head
    triangle = polygon(tip, (x + side_x, y + side_y), (x - side_x, y - side_y))
    return union(strokes(tail, width=width), triangle)


def car(at: Point, size: float) -> Field:
    """A car from behind: cabin over body over two wheels; `size` is half its width."""
    x, y = at
    return union(
        box(0.66 * size, 0.5 * size, (x, y - 0.5 * size), rounding=0.2 * size),
        box(size, 0.45 * size, (x, y + 0.25 * size), rounding=0.15 * size),
        box(0.22 * size, 0.3 * size, (x - 0.65 * size, y + 0.75 * size)),
        box(0.22 * size, 0.3 * size, (x + 0.65 * size, y + 0.75 * size)),
    )
