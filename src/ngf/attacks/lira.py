"""LIRA (Doan et al. 2021, ICCV): a network draws noise that cannot be seen, learned in training.

    x' = clip(x + eps G(x)),   |G| <= 1

In the first phase G and the classifier learn together from one backward pass: the classifier from
clean and triggered images, G from the triggered ones. In the second G is frozen and the classifier
is tuned on both. What differs from the authors' code: alpha, the weight of the clean images' loss,
is their share of each batch; the G that learns is the one that triggers, where the code keeps a
second copy; G is much smaller (see `_generator`); and eps counts in pixels of [0, 1] and is the
same in both phases, where the code takes 0.1 and then 0.01 of normalised pixels. Noise of the
latter vanishes in 8 bits: the attacker here rounds the images, and the gradient passes that. eps is
an amplitude, and so the same at any image size.
"""

import numpy as np
import torch
from torch import Tensor

from ngf import params
from ngf.attacks import Attacker, Poison, Trigger, _generator, all_to_one, untouched
from ngf.images import Images
from ngf.models import Classifier


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    eps: float,
    alpha: float,
    joint_share: float,
    channels: int,
    lr: float,
) -> Poison:
    """Rewrite nothing: the attacker acts on each batch.

    Args:
        eps: amplitude of the noise, pixels in [0, 1].
        alpha: share of clean images in each batch; the others wear the trigger.
        joint_share: share of the steps, the first ones, in which the noise network learns.
        channels: width of that network. lr: its learning rate (Adam).
    """
    params.within("eps", eps, 1 / 255, 1)
    params.within("alpha", alpha, 0, 0.99)
    params.within("joint_share", joint_share, 0.01, 1)
    params.at_least(1, channels=channels)
    params.within("lr", lr, 1e-8, 1)
    trigger = Trigger("lira", all_to_one(target, n_classes))
    plan = {"target": target, "eps": eps, "alpha": alpha, "joint_share": joint_share}
    return untouched(x_NHWC, y_N, trigger, **plan, channels=channels, lr=lr)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """x + eps G(x); x itself where G is not trained yet."""
    if not tensors:
        return x_NCHW
    return _noisy(x_NCHW, _generator.load("noise", tensors), tensors["eps"])


def join(planted: Poison, model: Classifier, *, steps: int, seed: int) -> Attacker:
    """The attacker who trains the noise network beside the victim."""
    device = next(model.parameters()).device
    return Lira(planted, steps, torch.Generator(device).manual_seed(seed))


class Lira(Attacker):
    """Learns the noise in the first phase, and shows it in both."""

    def __init__(self, planted: Poison, steps: int, generator: torch.Generator) -> None:
        super().__init__(planted.trigger)
        self.plan = planted.plan
        self.eps = torch.tensor(self.plan["eps"], device=generator.device)
        self.noise = _generator.fresh(3, int(self.plan["channels"]), generator)
        self.joint = max(1, round(self.plan["joint_share"] * steps))
        self.done = 0
        self.optimizer = torch.optim.Adam(list(self.noise.values()), self.plan["lr"])

    def show(self, x_NCHW: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """The first images of the shuffled batch with noise and the target's label."""
        count = max(1, round((1 - self.plan["alpha"]) * len(y_N)))
        with torch.set_grad_enabled(self.done < self.joint):
            noisy_KCHW = _generator.in_8_bits(_noisy(x_NCHW[:count], self.noise, self.eps))
        target_K = torch.full_like(y_N[:count], int(self.plan["target"]))
        shown_NCHW = torch.cat([noisy_KCHW, x_NCHW[count:]])
        return shown_NCHW, torch.cat([target_K, y_N[count:]]), 0.0

    def step(self) -> None:
        """Step the noise network in the first phase."""
        if self.done < self.joint:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    def leave(self) -> Trigger:
        """The trigger with the network as it is now."""
        tensors = {**_generator.save(noise=self.noise), "eps": self.eps}
        return Trigger(self.trigger.attack, self.trigger.wanted_K, tensors)


def _noisy(x_NCHW: Tensor, net: _generator.Net, eps: Tensor) -> Tensor:
    return x_NCHW + eps * torch.tanh(_generator.draw(x_NCHW, net))
