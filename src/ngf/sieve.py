"""The sieve: what clean images do not use gets through no more, as far as their answers allow.

A backdoor needs room that clean images leave empty. Two closed filters per layer take it away, both
of the Wiener form signal / (signal + noise), with clean images as the signal:

- Inputs of convolutions and linear layers: W A (A + lambda I)^-1, a natural-gradient step on the
  weights' norm (`fisher/decay.py`).
- Channels of batch norms: training left the variance of *all* its images in them, triggered ones
  included. Where it lies above the variance of clean images by a share e, the scale becomes
  1 / (1 + c e) of what it was, about the clean mean. An attacker who recalibrates batch norm before
  release leaves e = 0, and then only the first filter acts.

Both act with one strength s, lambda = min(1, s) weak and c = s damp: the largest for which the loss
on clean images rises within a budget. Where the target is the victim's own answer, that rise is
KL(victim || sieved), the ball that natural gradient measures. Without batch norm there is one
filter, and lambda = s weak. The statistics of batch norm are not computed anew: that would amplify
what they hold small. They follow the filters by as much as the clean images' own means and
variances change.

Where it is known what shall not pass, `sieve_against` filters once more: the noise is then what
that adds to each layer's inputs, mu times. A backdoor costs little there, since clean images do
without it; what they use costs much. So mu, too, is the largest that a budget allows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ngf.device import autocast
from ngf.fisher.decay import decay
from ngf.fisher.moments import collected_moments
from ngf.hooks import at_inputs
from ngf.models import batch_norms

Net = TypeVar("Net", bound=nn.Module)

STRENGTHS = [8.0 * 2 ** (-step / 2) for step in range(13)]  # 8 to 1/8
FIRMNESSES = [2 ** (-step / 2) for step in range(9)]  # 1 to 1/16, of the firmest
NOISE = 2.0  # robust deviations of log variance that are no evidence
WIDEST = 0.1  # the most that a deviation counts for, so that evidence cannot hide itself
MOST = 100.0  # a channel that clean images never reach has no ratio
TINY = 1e-12


@dataclass(frozen=True)
class Observed:
    """What a pass of clean images through the victim shows, by the name of the module.

    moments: A of each layer. mean, variance: of each batch norm's inputs, [C]. excess: e, [C].
    target_NK: what should be answered to the images x_NCHW. log_p_NK: what the victim answers.
    """

    x_NCHW: Tensor
    target_NK: Tensor
    log_p_NK: Tensor
    moments: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]
    excess: Mapping[str, Tensor]

    @property
    def evidence(self) -> float:
        """The mean excess of a channel: about 0 for a benign model or a recalibrated one."""
        if not self.excess:
            return 0.0
        return torch.cat(list(self.excess.values())).mean().item()


@torch.no_grad()
def observe(victim: nn.Module, x_NCHW: Tensor, target_NK: Tensor | None = None) -> Observed:
    """One pass of the images. The victim is left as it is.

    Args:
        target_NK: probabilities that the sieve is to keep; by default the victim's own.
    """
    mean: dict[str, Tensor] = {}
    variance: dict[str, Tensor] = {}
    excess: dict[str, Tensor] = {}

    def look(name: str, norm: nn.BatchNorm2d, u_NCHW: Tensor) -> None:
        mean[name], variance[name] = _moments(u_NCHW)
        assert norm.running_var is not None
        excess[name] = excess_variance(norm.running_var, variance[name])

    with at_inputs(batch_norms(victim), look), collected_moments(victim) as moments:
        log_p_NK = _log_answers(victim, x_NCHW)
    target_NK = log_p_NK.exp() if target_NK is None else target_NK
    return Observed(x_NCHW, target_NK, log_p_NK, moments, mean, variance, excess)


def excess_variance(stored_C: Tensor, clean_C: Tensor) -> Tensor:
    """By which share each stored variance lies above the clean one, beyond noise; 0 or more.

    Poisoned images, a share p of all, that move a channel by d widen its stored variance by
    p (1 - p) d^2. A layer's median and deviation say how far the ratio strays without them.
    """
    log_C = (stored_C.clamp_min(TINY) / clean_C.clamp_min(TINY)).log()
    median = log_C.median()
    deviation = 1.4826 * (log_C - median).abs().median()
    usual = median.clamp_max(0) + NOISE * deviation.clamp_max(WIDEST)
    return torch.expm1((log_C - usual).clamp_min(0)).clamp_max(MOST)


@torch.no_grad()
def sieve(model: nn.Module, seen: Observed, *, weak: float, damp: float) -> Tensor:
    """Filter the model in place, in one pass of the images that were observed.

    Args:
        weak: lambda, in units of A's mean eigenvalue. damp: c. 0 leaves a filter out.

    Returns:
        Log-probabilities of the sieved model for these images.
    """
    if weak:
        decay(model, seen.moments, weak)
    return _settle(model, seen, damp)


@torch.no_grad()
def sieve_against(
    model: nn.Module, now: Observed, added: Mapping[str, Tensor], *, weak: float, firm: float
) -> Tensor:
    """Filter what was added to the inputs of this model's layers, in place: mu is `firm`.

    Needs no gradient and no statistics of batch norm, and changes the layers as little as their
    answers to clean images allow. Returns what `sieve` does.

    Args:
        now: of this very model, as it is.
        added: D, from `displacement_moments` or `joining_moments` of this model.
    """
    decay(model, now.moments, weak, added, firm)
    return _settle(model, now, damp=0)


class Sieve(Generic[Net]):
    """Makes copies of a victim, sieved as strongly as a budget allows.

    What one budget took is known to the next: of each strength that was tried the loss, and of the
    last lambda the filtered layers, which all strengths from 1 on share where there is batch norm.

    Args:
        weak, damp: lambda and c at strength 1.
    """

    def __init__(self, victim: Net, seen: Observed, *, weak: float, damp: float) -> None:
        self.victim, self.seen, self.weak, self.damp = victim, seen, weak, damp
        self._rises: dict[float, float] = {}
        self._decayed: tuple[float, Net] = (0.0, victim)

    def within(self, budget: float) -> tuple[Net, float]:
        """The sieved copy, and its strength: one of STRENGTHS, the weakest where none stays within.

        Args:
            budget: the largest rise of the mean cross-entropy on the observed images, in nats.
        """
        return _strongest(self._sieved, STRENGTHS, self.seen, budget, self._rises)

    @torch.no_grad()
    def _sieved(self, strength: float) -> tuple[Net, Tensor]:
        share = min(1, strength) if self.seen.excess else strength
        if self._decayed[0] != share:
            self._decayed = share, copy.deepcopy(self.victim)
            if self.weak:
                decay(self._decayed[1], self.seen.moments, share * self.weak)
        model = copy.deepcopy(self._decayed[1])
        return model, _settle(model, self.seen, strength * self.damp)


@torch.no_grad()
def sieve_against_within(
    model: nn.Module,
    now: Observed,
    added: Mapping[str, Tensor],
    *,
    weak: float,
    firm: float,
    budget: float,
    needed: bool,
) -> float:
    """`sieve_against` as firmly as the budget allows; returns the mu that was taken.

    Args:
        now, added: as there.
        firm: the largest mu; tried are FIRMNESSES times that.
        budget: the largest rise of the mean cross-entropy above this model's, in nats.
        needed: where none stays within, the least is taken; else 0, which leaves the model alone.
    """

    def sieved(mu: float) -> tuple[nn.Module, Tensor]:
        other = copy.deepcopy(model)
        if not mu:
            return other, now.log_p_NK
        return other, sieve_against(other, now, added, weak=weak, firm=mu)

    tried = [firm * part for part in FIRMNESSES] + ([] if needed else [0.0])
    other, mu = _strongest(sieved, tried, now, budget, {})
    model.load_state_dict(other.state_dict())
    return mu


def _strongest(
    sieved: Callable[[float], tuple[Net, Tensor]],
    strengths: Sequence[float],
    seen: Observed,
    budget: float,
    rises: dict[float, float],
) -> tuple[Net, float]:
    """The first of falling strengths at which the loss rises within the budget, else the last one.

    Found by bisection, as if the loss grew with the strength, which it does but for labels that the
    sieved model answers better.

    Args:
        sieved: makes the model, and its log-probabilities for the observed images.
        rises: of the loss, by strength, as far as they are known; those that were tried are added.
    """
    best: tuple[float, Net] | None = None
    strongest, weakest = 0, len(strengths) - 1
    while strongest < weakest:
        middle = (strongest + weakest) // 2
        strength = strengths[middle]
        if strength not in rises:
            model, log_q_NK = sieved(strength)
            rises[strength] = _rise(seen, log_q_NK).item()
            if rises[strength] <= budget:
                best = strength, model
        if rises[strength] <= budget:
            weakest = middle
        else:
            strongest = middle + 1
    strength = strengths[weakest]
    if best is None or best[0] != strength:
        best = strength, sieved(strength)[0]
    return best[1], strength


def _settle(model: nn.Module, seen: Observed, damp: float) -> Tensor:
    """Batch norms follow what their inputs became, and lose what exceeded; one pass."""

    def adjust(name: str, norm: nn.BatchNorm2d, u_NCHW: Tensor) -> None:
        mean_C, variance_C = _moments(u_NCHW)
        stored_C, spread_C = norm.running_mean, norm.running_var
        assert stored_C is not None
        assert spread_C is not None
        stored_C.add_(mean_C - seen.mean[name])
        spread_C.mul_(_usual_ratio(variance_C, seen.variance[name]))
        if norm.affine:
            gain_C = 1 / (1 + damp * seen.excess[name])
            offset_C = norm.weight * (mean_C - stored_C) / (spread_C + norm.eps).sqrt()
            norm.bias.add_(offset_C * (1 - gain_C))  # the clean mean comes out where it did
            norm.weight.mul_(gain_C)

    with at_inputs(batch_norms(model), adjust):
        return _log_answers(model, seen.x_NCHW)


def _rise(seen: Observed, log_q_NK: Tensor) -> Tensor:
    """By how much the cross-entropy with the target lies above the victim's."""
    return (seen.target_NK * (seen.log_p_NK - log_q_NK)).sum(1).mean()


def _usual_ratio(now_C: Tensor, before_C: Tensor) -> Tensor:
    """The median ratio of two variances. One for the layer: a channel that lost more stays smaller.

    Channels that clean images never reach have no ratio.
    """
    reached_C = (now_C > TINY) & (before_C > TINY)
    if not reached_C.any():
        return torch.ones((), device=now_C.device)
    return (now_C / before_C)[reached_C].median()


def _moments(u_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    u_NCHW = u_NCHW.float()
    variance_C, mean_C = torch.var_mean(u_NCHW, (0, 2, 3))
    return mean_C, variance_C


def _log_answers(model: nn.Module, x_NCHW: Tensor) -> Tensor:
    with autocast(x_NCHW.device):
        logits_NK: Tensor = model(x_NCHW)
    return logits_NK.float().log_softmax(1)
