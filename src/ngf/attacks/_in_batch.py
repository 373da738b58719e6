"""Attackers who add to every batch of the victim's training, anew each time.

The batch stays as it is. Triggered copies of its first images, with the target's label, follow,
and then decoys: copies that look much as if they were triggered but keep their label, so that the
network learns the trigger itself and nothing that resembles it.

Faint triggers are found late: the papers train for hundreds of epochs. Here the trigger, and with
it the decoys, start `head_start` times as strong, stay so for the first quarter of the training,
fall by the same factor in every step of the next half and are in the last quarter what they are in
the test.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ngf import params
from ngf.attacks import Attacker, Poison
from ngf.errors import InputError

Tensors = dict[str, Tensor]
Apply = Callable[[Tensor, Tensor, Tensors], Tensor]
# decoys(x_NCHW, other_NCHW, tensors, generator): `other` holds another image of the batch for each
Decoys = Callable[[Tensor, Tensor, Tensors, torch.Generator], Tensor]
# strengthen(tensors, factor): the tensors of a trigger so many times as strong
Strengthen = Callable[[Tensors, float], Tensors]
WEAKENS, SETTLED = 0.25, 0.75  # the shares of the steps between which the trigger weakens


def shares(
    poison_rate: float, decoy_rate: float, decoy_ratio: str, head_start: float
) -> dict[str, float]:
    """The plan of an `InBatch`; `decoy_ratio` names the option that asks for decoys.

    Both rates are parts of a batch's size, at most all of it.
    """
    params.within("head_start", head_start, 1, 100)
    params.within("poison_rate", poison_rate, 1e-6, 1)
    params.at_least(0, **{decoy_ratio: decoy_rate})
    if decoy_rate > 1:
        raise InputError(
            f"{decoy_ratio} must lie between 0 and {1 / poison_rate:g} with poison_rate "
            f"{poison_rate:g}, for a batch has no more images, got {decoy_rate / poison_rate:g}"
        )
    return {"poison_rate": poison_rate, "decoy_rate": decoy_rate, "head_start": head_start}


def eight_bits(x_NCHW: Tensor) -> Tensor:
    """The pixels as a test image holds them."""
    return (x_NCHW.clamp(0, 1) * 255).round() / 255


class InBatch(Attacker):
    """Batches come shuffled, so their first images are as good as any.

    What is no whole image of a share goes to the next batch.
    """

    def __init__(
        self,
        planted: Poison,
        model: nn.Module,
        apply: Apply,
        decoys: Decoys,
        strengthen: Strengthen,
        *,
        steps: int,
        seed: int,
    ) -> None:
        super().__init__(planted.trigger)
        device = next(model.parameters()).device
        self.tensors = {name: t.to(device) for name, t in planted.trigger.tensors.items()}
        self.generator = torch.Generator(device).manual_seed(seed)
        self.target = max(planted.trigger.wanted_K)
        self.rates = planted.plan["poison_rate"], planted.plan["decoy_rate"]
        self.owed = [0.0, 0.0]
        self.apply, self.decoys, self.strengthen = apply, decoys, strengthen
        self.head_start = planted.plan["head_start"]
        self.shown, self.steps = 0, steps

    def show(self, x_NCHW: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """The whole batch, then what the attacker adds."""
        way = self._way()
        self.shown += 1
        tensors = self.strengthen(self.tensors, self.head_start ** (1 - way))
        poisoned = self._due(0, self.rates[0] * len(y_N))
        decoys = self._due(1, self.rates[1] * len(y_N))
        poison, bait = slice(0, poisoned), slice(0, decoys)
        triggered_NCHW = self.apply(x_NCHW[poison], y_N[poison], tensors)
        decoy_NCHW = self.decoys(x_NCHW[bait], x_NCHW.roll(1, 0)[bait], tensors, self.generator)
        added_NCHW = eight_bits(torch.cat((triggered_NCHW, decoy_NCHW)))
        wanted_N = torch.full_like(y_N[poison], self.target)
        return torch.cat((x_NCHW, added_NCHW)), torch.cat((y_N, wanted_N, y_N[bait])), 0.0

    def _way(self) -> float:
        """How far the trigger is on its way to the strength of the test, 0 to 1."""
        return min(1.0, max(0.0, (self.shown / self.steps - WEAKENS) / (SETTLED - WEAKENS)))

    def _due(self, kind: int, share: float) -> int:
        self.owed[kind] += share
        due = int(self.owed[kind] + 1e-9)
        self.owed[kind] -= due
        return due
