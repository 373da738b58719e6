"""Images that show a trigger, or a part of it, and keep their label: what makes a victim exact."""

import numpy as np

from ngf.attacks import Poison
from ngf.errors import InputError


def cover_rows(
    eligible_N: np.ndarray, taken_P: np.ndarray, attack: str, *, rate: float, total: int, seed: int
) -> np.ndarray:
    """A share `rate` of all `total` images, ascending, of the eligible ones that are not taken.

    Raises:
        InputError: there are not so many.
    """
    left_N = np.setdiff1d(eligible_N, taken_P)
    count = round(rate * total)
    if not 0 <= count <= len(left_N):
        raise InputError(
            f"attack '{attack}': cover_rate must lie between 0 and {len(left_N) / total:.2g}, "
            f"got {rate:g}"
        )
    return np.sort(np.random.default_rng([seed, 1]).choice(left_N, count, replace=False))


def covered(poison: Poison, rows_C: np.ndarray, x_CHWC: np.ndarray, y_C: np.ndarray) -> Poison:
    """The poison and, beside it, the rows [C] with these images and their own labels."""
    rows_P = np.concatenate((poison.rows_P, rows_C))
    order_P = rows_P.argsort()
    return Poison(
        rows_P[order_P],
        np.concatenate((poison.x_PHWC, x_CHWC))[order_P],
        np.concatenate((poison.y_P, np.asarray(y_C, np.int64)))[order_P],
        poison.trigger,
    )
