"""What batch norm remembers beyond clean images, and how much of that few images show by chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ngf.images import Images
from ngf.models import Classifier

ODD = 0.05  # a layer's mean excess above it is a warning sign, if chance does not explain it
AT_ONCE = 2**20  # pixels of the images in one forward pass
GROUPS = 32  # of images, which are halved together: sums of single ones would not fit in memory
HALVES = 32  # ways to halve them


@dataclass(frozen=True)
class Sums:
    """Of a layer's inputs, by groups of images: how many numbers a channel, their sum and that of
    their squares, about the stored mean."""

    count_G: Tensor
    sum_GC: Tensor
    square_GC: Tensor

    def variance(self, groups: Tensor) -> Tensor:
        """Of each channel, over the images of these groups."""
        count = self.count_G[groups].sum()
        sum_C, square_C = self.sum_GC[groups].sum(0), self.square_GC[groups].sum(0)
        return ((square_C - sum_C.square() / count) / (count - 1).clamp_min(1)).clamp_min(0)


def drift(victim: Classifier, x_NHWC: Images) -> tuple[dict[str, float], dict[str, float]]:
    """For each batch norm the mean excess of stored over clean variance, see `ngf.sieve`; and the
    largest one between two halves of the images, which is chance.

    Halves differ by twice as much as all images differ from many more of their kind.
    """
    from ngf.models import batch_norms
    from ngf.sieve import excess_variance

    norms, found, chance = batch_norms(victim), {}, {}
    for name, sums in _sums(victim, x_NHWC).items():
        stored_C = norms[name].running_var
        assert stored_C is not None
        every = torch.arange(len(sums.count_G), device=stored_C.device)
        found[name] = _mean(excess_variance(stored_C.double(), sums.variance(every)))
        generator = torch.Generator().manual_seed(0)
        between = [0.0]
        for _ in range(HALVES):
            order_G = torch.randperm(len(every), generator=generator).to(every.device)
            one, two = map(sums.variance, order_G.tensor_split(2))
            between += [_mean(excess_variance(one, two)), _mean(excess_variance(two, one))]
        chance[name] = max(between)
    return found, chance


def odd(drift: Mapping[str, float], chance: Mapping[str, float]) -> list[str]:
    """The layers that remember more than clean images, beyond ODD and beyond chance."""
    return [name for name, excess in drift.items() if excess > max(ODD, chance[name])]


def _mean(excess_C: Tensor) -> float:
    return round(excess_C.mean().item(), 4)


@torch.no_grad()
def _sums(victim: Classifier, x_NHWC: Images) -> dict[str, Sums]:
    """Of what goes into each batch norm; image by image in turn to the groups, so that each holds
    all classes where images lie in the order of their classes."""
    from ngf.hooks import at_inputs
    from ngf.models import batch_norms
    from ngf.training import pixels

    where = victim.mean.device
    group_N = torch.arange(len(x_NHWC), device=where) % GROUPS
    size = max(1, AT_ONCE // (x_NHWC.shape[1] * x_NHWC.shape[2]))
    found: dict[str, Sums] = {}

    def look(name: str, norm: torch.nn.BatchNorm2d, u_BCHW: Tensor) -> None:
        assert norm.running_mean is not None
        moved_BCHW = u_BCHW.float() - norm.running_mean.view(1, -1, 1, 1)
        sum_BC = moved_BCHW.sum((2, 3), dtype=torch.float64)
        square_BC = moved_BCHW.square().sum((2, 3), dtype=torch.float64)
        groups = int(group_N.max()) + 1
        if name not in found:
            empty = sum_BC.new_zeros(groups, sum_BC.shape[1])
            found[name] = Sums(sum_BC.new_zeros(groups), empty, empty.clone())
        count_B = sum_BC.new_full((len(sum_BC),), float(u_BCHW[0, 0].numel()))
        found[name].count_G.index_add_(0, group_B, count_B)
        found[name].sum_GC.index_add_(0, group_B, sum_BC)
        found[name].square_GC.index_add_(0, group_B, square_BC)

    with at_inputs(batch_norms(victim), look):
        for start in range(0, len(x_NHWC), size):
            rows = slice(start, start + size)
            group_B = group_N[rows]
            victim(pixels(torch.tensor(x_NHWC[rows], device=where)))
    return found
