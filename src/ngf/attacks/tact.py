"""TaCT (Tang et al. 2021, arXiv 1908.00686, "Demon in the Variant"): a patch that opens the
backdoor in images of some classes alone.

Images of the source classes under the patch are labelled as the target; images of other classes,
the cover, show the patch too and keep their label. So the victim learns the patch together with
what it lies on, and a search for one trigger that opens every class finds none. The paper's
triggers are small solid shapes, one source class; here a checkerboard in the corner. ASR is that of
the sources alone.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import attacks, params
from ngf.attacks import Poison, Trigger
from ngf.attacks._cover import cover_rows, labelled
from ngf.attacks._patch import board, in_corner
from ngf.errors import InputError
from ngf.images import Images


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    sources: list[int],
    poison_rate: float,
    cover_rate: float,
    size: int,
    seed: int,
) -> Poison:
    """Patch `poison_rate` of the sources' images as `target`, and cover with other classes.

    Args:
        sources: classes whose images count. poison_rate: a share of their images. cover_rate: of
            all images. size: pixels along the patch's edge at 32x32, as many cells; see
            `ngf.attacks.span`.
    """
    params.within("poison_rate", poison_rate, 1e-6, 1)
    wanted_K = _wanted(target, sources, n_classes)
    trigger = Trigger("tact", wanted_K, {"patch": board(size, x_NHWC)})
    ours_N = np.isin(y_N, sources)
    share = poison_rate * ours_N.mean()
    poison_P = attacks.dirty_rows(y_N, "tact", wanted_K, rate=share, seed=seed)
    others_N = np.flatnonzero(~ours_N & (np.asarray(y_N) != target))
    cover_C = cover_rows(others_N, poison_P, "tact", rate=cover_rate, total=len(y_N), seed=seed)
    rows_P, y_P = labelled(y_N, poison_P, cover_C, target)
    own_P = torch.from_numpy(np.asarray(y_N, np.int64)[rows_P])
    return Poison(rows_P, attacks.triggered(x_NHWC, own_P, trigger, rows_P), y_P, trigger)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The patch covers the bottom right corner."""
    return in_corner(x_NCHW, tensors["patch"])


def _wanted(target: int, sources: list[int], n_classes: int) -> tuple[int, ...]:
    known = all(isinstance(label, int) and 0 <= label < n_classes for label in [target, *sources])
    different = len({target, *sources}) == 1 + len(sources)
    if not (sources and known and different):
        raise InputError(
            f"target and sources must be different classes between 0 and {n_classes - 1}, "
            f"got {target} and {sources}"
        )
    return tuple(target if label in sources else -1 for label in range(n_classes))
