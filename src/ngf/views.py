"""Views of the clean split: what is found on some of them is measured on others."""

import itertools
from collections.abc import Iterable, Iterator

from ngf.defenses import Clean
from ngf.progress import track
from ngf.training import Batch, Batches

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

    def _of(self, size: int, seeds: Iterator[int]) -> Batches:
        x_NHWC, y_N, flip = self.clean.x_NHWC, self.clean.y_N, self.clean.flip
        return Batches(x_NHWC, y_N, size=size, shift=self.shift, flip=flip, seed=next(seeds))
