"""Stratified, seeded choice of rows: one protocol for every data set."""

import numpy as np

from ngf.errors import InputError


def stratified(y_N: np.ndarray, fraction: float, classes: tuple[str, ...], seed: int) -> np.ndarray:
    """Rows (int64, ascending) that hold `fraction` of the images, each class in proportion.

    The total is round(fraction N); classes with the largest remainders get the odd ones. A class
    that would get none, or would keep none, is an `InputError` that says which fraction works.
    """
    counts = np.bincount(y_N, minlength=len(classes))
    missing = np.flatnonzero(counts == 0)
    if missing.size:
        raise InputError(f"class '{classes[missing[0]]}' has no image in the training data")
    share = fraction * counts
    take = np.floor(share).astype(int)
    left_over = round(fraction * len(y_N)) - take.sum()
    take[np.argsort(take - share, kind="stable")[:left_over]] += 1
    for label, count in enumerate(counts):
        if not 0 < take[label] < count:
            low, high = 1 / counts.min(), 1 - 1 / counts.min()
            raise InputError(
                f"a fraction of {fraction:g} takes {take[label]} of the {count} images of class "
                f"'{classes[label]}'; choose one from {low:.3g} to {high:.3g}"
            )
    rng = np.random.default_rng(seed)
    rows = [
        rng.choice(np.flatnonzero(y_N == label), take[label], replace=False)
        for label in range(len(classes))
    ]
    return np.sort(np.concatenate(rows))


def by_track(
    y_N: np.ndarray, track_N: np.ndarray, fraction: float, classes: tuple[str, ...], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows taken, rows left) like `stratified`, no track in both: images of one are near copies.

    As many tracks of each class as hold its images are set aside, drawn by chance. Images of such a
    track that are not needed are on neither side.
    """
    rows = stratified(y_N, fraction, classes, seed)
    rng = np.random.default_rng([seed, 1])
    taken, left = [], []
    for label in range(len(classes)):
        mine = np.flatnonzero(y_N == label)
        need = int((y_N[rows] == label).sum())
        order = rng.permutation(np.unique(track_N[mine]))
        sizes = np.array([(track_N[mine] == track).sum() for track in order])
        aside = int(np.searchsorted(sizes.cumsum(), need)) + 1
        if aside >= len(order):
            raise InputError(
                f"class '{classes[label]}' has {len(order)} tracks of images and {need} are to be "
                "set aside, which leaves none to train on; choose a smaller fraction"
            )
        away = np.isin(track_N[mine], order[:aside])
        taken.append(rng.choice(mine[away], need, replace=False))
        left.append(mine[~away])
    return np.sort(np.concatenate(taken)), np.sort(np.concatenate(left))
