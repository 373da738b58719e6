"""Images that show a trigger, or a part of it, and keep their label: what makes a victim exact."""

import numpy as np

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


def labelled(
    y_N: np.ndarray, poison_P: np.ndarray, cover_C: np.ndarray, target: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, ascending; labels): the target for poisoned ones, their own for those that cover."""
    rows_P = np.union1d(poison_P, cover_C)
    return rows_P, np.where(np.isin(rows_P, poison_P), target, np.asarray(y_N, np.int64)[rows_P])
