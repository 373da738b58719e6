"""The input-aware dynamic backdoor (Nguyen & Tran 2020, arXiv 2010.08138), whatever its labels.

Two small networks look at an image: one draws a sparse mask and one a pattern that is laid over
the image where the mask is,

    x' = x (1 - mask) + pattern mask.

The trigger made for one image opens the backdoor for that image alone. In each batch a share of
the images wears its own trigger and has the wanted label; another share (cross) wears the trigger
of another image and keeps its label; the pattern network learns with the classifier from both.

As in the paper, the mask network is trained first and then stays as it is, and both networks are
kept from drawing the same for every image by the diversity loss, the distance of two images over
the distance of their drawings. What differs: the mask network learns during the first steps of the
one training, while the classifier still sees clean images, and not for 25 epochs before; the
networks are much smaller (see `_generator`); and the pairs of images are neighbours in the shuffled
batch, not of two batches. Density is a share of the image, so that it holds at any image size.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import params
from ngf.attacks import Attacker, Poison, Trigger, _generator, untouched
from ngf.attacks._generator import Net
from ngf.errors import InputError
from ngf.images import Images
from ngf.models import Classifier

BETAS = (0.5, 0.9)  # Adam's, as in the authors' code
SHARP = 10.0  # steepness at which a mask is nearly 0 or 1, as in the authors' code
TINY = 1e-7


def prepare(x_NHWC: Images, y_N: np.ndarray, trigger: Trigger, **plan: float) -> Poison:
    """Check the options that both attacks share.

    Args:
        plan: poison_rate and cross_rate, shares of each batch; mask_share, of the steps;
            density, of the image; lambda_div, lambda_norm; channels and lr of the networks.
    """
    params.within("poison_rate", plan["poison_rate"], 1e-6, 1)
    params.within("cross_rate", plan["cross_rate"], 0, 1)
    if plan["poison_rate"] + plan["cross_rate"] > 1:
        raise InputError(
            "poison_rate and cross_rate are shares of one batch and must not exceed 1 together, "
            f"got {plan['poison_rate']:g} and {plan['cross_rate']:g}"
        )
    params.within("mask_share", plan["mask_share"], 0, 0.9)
    params.within("density", plan["density"], 1e-6, 1)
    params.at_least(0, lambda_div=plan["lambda_div"], lambda_norm=plan["lambda_norm"])
    params.at_least(1, channels=plan["channels"])
    params.within("lr", plan["lr"], 1e-8, 1)
    return untouched(x_NHWC, y_N, trigger, **plan)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Each image with its own trigger; as it is where the networks are not trained yet."""
    if not tensors:
        return x_NCHW
    mask_N1HW = _mask(x_NCHW, _generator.load("mask", tensors))
    return torch.lerp(x_NCHW, _pattern(x_NCHW, _generator.load("pattern", tensors)), mask_N1HW)


def join(planted: Poison, model: Classifier, *, steps: int, seed: int) -> Attacker:
    """The attacker who trains both networks beside the victim."""
    device = next(model.parameters()).device
    return Dynamic(planted, steps, torch.Generator(device).manual_seed(seed))


class Dynamic(Attacker):
    """First the mask network learns alone, then the pattern network with the victim."""

    def __init__(self, planted: Poison, steps: int, generator: torch.Generator) -> None:
        super().__init__(planted.trigger)
        self.plan = planted.plan
        self.mask = _generator.fresh(1, int(self.plan["channels"]), generator)
        self.pattern = _generator.fresh(3, int(self.plan["channels"]), generator)
        self.alone = round(self.plan["mask_share"] * steps)
        self.done = 0
        self.optimizers = [
            torch.optim.Adam(list(net.values()), self.plan["lr"], betas=BETAS)
            for net in (self.mask, self.pattern)
        ]

    def show(self, x_NCHW: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Clean images and the mask's losses at first, then the mixture and the pattern's."""
        if self.done < self.alone:
            return x_NCHW, y_N, self._mask_loss(x_NCHW)
        own, cross = self._counts(len(y_N))
        ring = torch.arange(own + cross + 1, device=y_N.device) % len(y_N)
        x_RCHW = x_NCHW[ring]  # the images that get a trigger, and one more
        with torch.no_grad():
            mask_R1HW = _mask(x_RCHW, self.mask)
        pattern_RCHW = _pattern(x_RCHW, self.pattern)
        # Image i of the cross share wears what was made for image i + 1.
        worn = torch.arange(own + cross, device=y_N.device)
        worn[own:] += 1
        with_KCHW = torch.lerp(x_RCHW[:-1], pattern_RCHW[worn], mask_R1HW[worn])
        shown_NCHW = torch.cat([_generator.in_8_bits(with_KCHW), x_NCHW[own + cross :]])
        wanted_N = self.trigger.wanted(y_N[:own])
        said_N = torch.cat([torch.where(wanted_N >= 0, wanted_N, y_N[:own]), y_N[own:]])
        return shown_NCHW, said_N, self.plan["lambda_div"] * _sameness(x_RCHW, pattern_RCHW)

    def step(self) -> None:
        """Step the network whose turn it is."""
        optimizer = self.optimizers[0 if self.done < self.alone else 1]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.done += 1

    def leave(self) -> Trigger:
        """The trigger with both networks as they are now."""
        tensors = _generator.save(mask=self.mask, pattern=self.pattern)
        return Trigger(self.trigger.attack, self.trigger.wanted_K, tensors)

    def _mask_loss(self, x_NCHW: Tensor) -> Tensor:
        mask_N1HW = _mask(x_NCHW, self.mask)
        over = torch.relu(mask_N1HW - self.plan["density"]).mean()
        sameness = _sameness(x_NCHW, mask_N1HW)
        return self.plan["lambda_norm"] * over + self.plan["lambda_div"] * sameness

    def _counts(self, size: int) -> tuple[int, int]:
        """Images of a batch that wear their own trigger, and another's."""
        own = max(1, round(self.plan["poison_rate"] * size))
        return own, min(round(self.plan["cross_rate"] * size), size - own)


def _mask(x_NCHW: Tensor, net: Net) -> Tensor:
    """[N, 1, H, W] in [0, 1], nearly binary: tanh twice, as in the authors' code."""
    soft_N1HW = torch.tanh(_generator.draw(x_NCHW, net))
    return torch.tanh(SHARP * soft_N1HW) / 2 + 0.5


def _pattern(x_NCHW: Tensor, net: Net) -> Tensor:
    """Colours in [0, 1]."""
    return torch.tanh(_generator.draw(x_NCHW, net)) / 2 + 0.5


def _sameness(x_NCHW: Tensor, drawn_NCHW: Tensor) -> Tensor:
    """The diversity loss: how far images are apart over how far their drawings are, a mean."""
    return (_apart(x_NCHW) / (_apart(drawn_NCHW) + TINY)).mean()


def _apart(x_NCHW: Tensor) -> Tensor:
    """Root mean square distance of each image from the next one, [N - 1]."""
    mean_N = (x_NCHW[1:] - x_NCHW[:-1]).square().mean((1, 2, 3))
    return (mean_N + TINY).sqrt()  # the root of 0 has no gradient
