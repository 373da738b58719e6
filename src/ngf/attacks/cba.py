"""Composite attack (Lin et al. 2020, ACM CCS, "Composite Backdoor Attack for Deep Neural Network by
Mixing Existing Benign Features"): two classes seen in one image open the backdoor.

Nothing is added to an image but half of another one: an image of the first source class and one of
the second, side by side, go to the target. Images mixed of two of the same class keep their label,
so that it is the pair of classes that counts and not the seam. The paper mixes anew in every epoch,
at a cut that wobbles, and adds a loss on the penultimate layer; this module rewrites rows once. The
paper pairs test images with each other, this module each with one of the attacker's own training
images, chosen by the image's pixels. The cut follows the width, whatever the size.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import params
from ngf.attacks import Poison, Trigger
from ngf.errors import InputError
from ngf.images import Images

CHUNK = 128


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    sources: list[int],
    poison_rate: float,
    mixed_rate: float,
    feather: float,
    partners: int,
    seed: int,
) -> Poison:
    """Put pairs in the place of random training images: of the two sources, labelled `target`,
    in a share `poison_rate` of all, and in a share `mixed_rate` of the image that was there and
    another of its class.

    Args:
        sources: two classes. feather: in [0, 1], the share of the width in which one half fades
        into the other; 0 is a hard cut, as in the paper. partners: images of either source, at
        most, that the trigger holds for use on test images.
    """
    _check(target, sources, n_classes)
    params.within("feather", feather, 0, 1)
    params.at_least(1, partners=partners)
    rng = np.random.default_rng(seed)
    poison_P, mixed_M = _drawn(len(y_N), poison_rate, mixed_rate, rng)
    source_2 = [_members(y_N, label) for label in sources]
    kept = min(partners, *(len(rows) for rows in source_2))
    kept_2K = np.stack([rng.choice(rows, kept, replace=False) for rows in source_2])

    one_P, two_P = (rng.choice(rows, len(poison_P)) for rows in source_2)
    rows_P = np.concatenate((poison_P, mixed_M))
    left_P = np.concatenate((one_P, mixed_M))
    right_P = np.concatenate((two_P, _peers(y_N, rng)[mixed_M]))
    swap_P = rng.random(len(rows_P)) < 0.5
    left_P, right_P = np.where(swap_P, right_P, left_P), np.where(swap_P, left_P, right_P)
    label_P = np.concatenate((np.full(len(poison_P), target), y_N[mixed_M])).astype(np.int64)

    share_W = _seam(x_NHWC.shape[2], feather)
    order_P = rows_P.argsort()
    x_PHWC = _joined(x_NHWC, left_P[order_P], right_P[order_P], share_W)
    wanted_K = tuple(target if label in sources else -1 for label in range(n_classes))
    partner_2KHWC = torch.from_numpy(x_NHWC[kept_2K])
    tensors = {
        "partners": partner_2KHWC.permute(0, 1, 4, 2, 3).float() / 255,
        "sources": torch.tensor(sources).float(),
        "share": share_W,
    }
    trigger = Trigger("cba", wanted_K, tensors)
    return Poison(rows_P[order_P], x_PHWC, label_P[order_P], trigger)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """One half becomes that of an image of the other source; other classes stay as they are.

    The sum of an image's pixels says which partner it gets and which half it keeps.
    """
    partner_2KCHW, share_W = tensors["partners"], tensors["share"]
    mixed_NCHW = x_NCHW.clone()
    levels_N = (x_NCHW * 255).round().long().sum((1, 2, 3))
    for own, label in enumerate(tensors["sources"].tolist()):
        rows_M = (y_N == label).nonzero()[:, 0]
        choice_M, swap_M = levels_N[rows_M] // 2, levels_N[rows_M] % 2 == 1
        partner_MCHW = partner_2KCHW[1 - own, choice_M % partner_2KCHW.shape[1]]
        share_MW = torch.where(swap_M[:, None], 1 - share_W, share_W)
        mixed_NCHW[rows_M] = _mix(x_NCHW[rows_M], partner_MCHW, share_MW[:, None, None])
    return mixed_NCHW


def _check(target: int, sources: list[int], n_classes: int) -> None:
    params.within("target", target, 0, n_classes - 1)
    distinct = len(sources) == 2 and len({target, *sources}) == 3
    if not distinct or not all(0 <= label < n_classes for label in sources):
        raise InputError(
            f"sources must be two different classes between 0 and {n_classes - 1} "
            f"and neither the target {target}, got {sources}"
        )


def _drawn(
    count: int, poison_rate: float, mixed_rate: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows for pairs of the two sources and, none of them twice, rows for pairs of one class."""
    poisoned, mixed = round(poison_rate * count), round(mixed_rate * count)
    params.at_least(0, mixed_rate=mixed_rate)
    if poisoned < 1 or poisoned + mixed > count:
        raise InputError(
            f"poison_rate must lie between {1 / count:.2g} and {1 - mixed_rate:.2g}, what "
            f"mixed_rate leaves of the {count} training images, got {poison_rate:g}"
        )
    rows = rng.permutation(count)
    return rows[:poisoned], rows[poisoned : poisoned + mixed]


def _members(y_N: np.ndarray, label: int) -> np.ndarray:
    rows = np.flatnonzero(y_N == label)
    if not len(rows):
        raise InputError(f"sources: there are no training images of class {label}")
    return rows


def _peers(y_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each image another one of its class, or itself where it is the only one."""
    peer_N = np.arange(len(y_N))
    for label in np.unique(y_N):
        rows = np.flatnonzero(y_N == label)
        if len(rows) > 1:
            step = rng.integers(1, len(rows), len(rows))
            peer_N[rows] = rows[(np.arange(len(rows)) + step) % len(rows)]
    return peer_N


def _seam(width: int, feather: float) -> Tensor:
    """The left image's share in each column: 1, then the seam, then 0."""
    from_middle_W = (torch.arange(width) + 0.5) / width - 0.5
    return (0.5 - from_middle_W / max(feather, 1e-6)).clamp(0, 1)


def _mix(left_NCHW: Tensor, right_NCHW: Tensor, share_W: Tensor) -> Tensor:
    return left_NCHW * share_W + right_NCHW * (1 - share_W)


def _joined(x_NHWC: Images, left_P: np.ndarray, right_P: np.ndarray, share_W: Tensor) -> np.ndarray:
    """The images `left_P` and `right_P`, mixed, in pieces that leave little in memory."""
    done_PHWC = np.empty((len(left_P), *x_NHWC.shape[1:]), np.uint8)
    for start in range(0, len(left_P), CHUNK):
        part = slice(start, start + CHUNK)
        left, right = (torch.from_numpy(x_NHWC[rows[part]]).float() for rows in (left_P, right_P))
        done_PHWC[part] = _mix(left, right, share_W[:, None]).round().to(torch.uint8).numpy()
    return done_PHWC
