"""Views of the clean split: what is found on some of them is measured on others."""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ngf.defenses import Clean
from ngf.progress import track
from ngf.training import Batch, Batches, augment, pixels

APART = 1000  # seeds between the views of some searches and those of all others


class Views:
    """Augmented batches of the clean images, other ones at each call.

    Args:
        shift: pixels of random translation. seed: of the first call's; each call takes the next, so
            seeds that lie close share most views.
    """

    def __init__(self, clean: Clean, *, shift: int, seed: int) -> None:
        self.clean, self.shift = clean, shift
        self._seeds = itertools.count(seed)
        self._apart = itertools.count(seed + APART)

    def batches(self, size: int) -> Batches:
        """Endless batches of so many images, or of all where there are fewer."""
        return self._of(size, self._seeds)

    def draw(self, size: int, count: int) -> Iterable[Batch]:
        """So many batches for a search, whose progress is shown."""
        return track(self._of(size, self._seeds).take(count), "search", count)

    def apart(self, size: int, count: int) -> Iterable[Batch]:
        """Likewise, with seeds of their own: what `draw` gives afterwards is as without."""
        return track(self._of(size, self._apart).take(count), "search", count)

    def by_class(self, size: int, count: int) -> Iterator[Batch]:
        """Likewise, of the M classes that there are equally many: image n is of class n mod M.

        At least one of each. Images of a class come again when all of it were there, so a batch may
        hold more than the clean split.
        """
        x_NHWC, y_N = self.clean.x_NHWC, self.clean.y_N
        chance = torch.Generator(y_N.device).manual_seed(next(self._apart))
        own_M = [torch.nonzero(y_N == label)[:, 0] for label in y_N.unique()]
        each = max(1, size // len(own_M))
        rows_LM = torch.stack([_endless(own, each * count, chance) for own in own_M], 1)
        for rows_EM in track(rows_LM.split(each), "search", count):
            rows_B = rows_EM.flatten()
            x_BHWC = augment(
                x_NHWC[rows_B], shift=self.shift, flip=self.clean.flip, generator=chance
            )
            yield pixels(x_BHWC), y_N[rows_B]

    def _of(self, size: int, seeds: Iterator[int]) -> Batches:
        x_NHWC, y_N, flip = self.clean.x_NHWC, self.clean.y_N, self.clean.flip
        return Batches(x_NHWC, y_N, size=size, shift=self.shift, flip=flip, seed=next(seeds))


def _endless(rows_N: Tensor, count: int, chance: torch.Generator) -> Tensor:
    """So many of the rows, all of them in a new order before any comes again."""
    orders = [
        rows_N[torch.randperm(len(rows_N), generator=chance, device=rows_N.device)]
        for _ in range(-(-count // len(rows_N)))
    ]
    return torch.cat(orders)[:count]
