"""Replay: clean images that feel triggered, from what batch norm remembers.

The stored means minus the clean means point, in every layer, from clean to triggered activations
(on the project's BadNets and Blend victims the cosine with the true displacement is 0.87 to 0.96
in the last stage). So a clean image's activations, moved along that shift, stand for the triggered
image that the defender does not have, and its true label is known. The division by the poison rate
is unknown: the move's length is drawn anew for each image. The shift itself is known only up to its
standard error: it is drawn too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ngf.device import autocast
from ngf.models import batch_norms
from ngf.norms import Evidence
from ngf.training import Batch

# Half of the images are moved everywhere, as by a pattern on the whole image, and half at one
# position, as by a patch, where the shift of the mean is that much larger.
SHARE_AT_ONE_POSITION = 0.5
GAIN_AT_ONE_POSITION = 4


MAJORITY = 0.5  # of all moved images must be sent to a class that is not theirs


@torch.no_grad()
def suspected_target(
    model: nn.Module, found: list[Evidence], batches: Iterable[Batch], reach: float
) -> int | None:
    """The class to which the remembered shift sends clean images; None where they do not agree."""
    strongest = max(range(len(found)), key=lambda layer: found[layer].excess_C.sum().item())
    shift_C = found[strongest].shift_C

    def displace(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].add_((reach * shift_C)[:, None, None].to(args[0].dtype))

    hook = batch_norms(model)[strongest].register_forward_pre_hook(displace)
    votes: list[Tensor] = []
    voters = 0
    try:
        for x_NCHW, y_N in batches:
            with autocast(x_NCHW.device):
                answer_N = model(x_NCHW).argmax(1)
            voters += len(y_N)
            votes.append(answer_N[answer_N != y_N])  # a class's own images are no witnesses
    finally:
        hook.remove()
    count_K = torch.bincount(torch.cat(votes), minlength=1)
    agreed = count_K.max() > MAJORITY * voters
    return int(count_K.argmax()) if agreed else None


class Replay:
    """Shows each batch twice: as it is, and moved at the input of one randomly drawn batch norm.

    Args:
        reach: the longest move in units of the shift; 1 / reach is the smallest poison rate whose
            triggered images are reached.
    """

    def __init__(
        self, model: nn.Module, found: list[Evidence], reach: float, generator: torch.Generator
    ) -> None:
        self.norms, self.found, self.reach = batch_norms(model), found, reach
        self.generator = generator
        weight_L = torch.stack([layer.excess_C.sum() for layer in found])
        self.weight_L = weight_L + torch.finfo(weight_L.dtype).eps  # without evidence: any layer

    @contextlib.contextmanager
    def __call__(self, batch: Batch) -> Iterator[Batch]:
        """The doubled batch; inside the block the model moves its second half, always alike."""
        x_NCHW, y_N = batch
        layer = int(torch.multinomial(self.weight_L, 1, generator=self.generator))
        move_NC = self._moves(self.found[layer], len(y_N))
        place = _Places(len(y_N), self.generator, y_N.device)

        def displace(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            moved_NCHW = args[0][len(y_N) :]
            # In place, so that a skip connection around the norm carries the move as well.
            moved_NCHW += (move_NC[:, :, None, None] * place.mask(moved_NCHW)).to(moved_NCHW.dtype)

        hook = self.norms[layer].register_forward_pre_hook(displace)
        try:
            yield torch.cat([x_NCHW, x_NCHW]), torch.cat([y_N, y_N])
        finally:
            hook.remove()

    def _moves(self, layer: Evidence, count: int) -> Tensor:
        """A displacement for each image [N, C]."""
        size = (count, len(layer.shift_C))
        device = layer.shift_C.device
        noise_NC = torch.randn(size, generator=self.generator, device=device)
        length_N = self.reach * torch.rand(count, generator=self.generator, device=device)
        return length_N[:, None] * (layer.shift_C + layer.error_C * noise_NC)


class _Places:
    """Where on the map each image is moved."""

    def __init__(self, count: int, generator: torch.Generator, device: torch.device) -> None:
        self.anywhere_N = torch.rand(count, generator=generator, device=device)
        coin_N = torch.rand(count, generator=generator, device=device)
        self.at_one_N = coin_N < SHARE_AT_ONE_POSITION

    def mask(self, x_NCHW: Tensor) -> Tensor:
        """Weights [N, 1, H, W]: one everywhere, or the gain at one position."""
        count, _, height, width = x_NCHW.shape
        pixels = height * width
        position_N = (self.anywhere_N * pixels).long()
        one_NP = nn.functional.one_hot(position_N, pixels) * float(
            min(pixels, GAIN_AT_ONE_POSITION)
        )
        mask_NP = torch.where(self.at_one_N[:, None], one_NP, 1.0)
        return mask_NP.view(count, 1, height, width)
