"""NGF's text taken literally (Karim et al. 2023, arXiv 2306.17441): the head alone is tuned.

The backbone and batch norm are frozen in evaluation mode. The loss is

    L = CE(clean) + eta / 2 sum_i diag(F0)_i (theta_i - theta0_i)^2

with F0 the true Fisher at the victim, computed once, and each of the full-batch steps is

    theta <- theta - lr (F + eta diag(F0) + damping)^-1 (grad CE + eta diag(F0) (theta - theta0)):

the anchor's curvature is inside the solve. Nothing before the head moves, so an augmented image has
the same features in every step: they are computed once, and a step costs products and one solve.

Head-only tuning does not purify a victim whose features carry the trigger (docs/method.md).
`recalibrate` first replaces batch norm's statistics by those of clean images, to tell apart what
that does from what tuning does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ngf import norms, params, trail
from ngf.defenses import Clean, Purified
from ngf.defenses.finetune_head import view_features
from ngf.errors import InputError
from ngf.fisher.curvature import Curvature, with_bias
from ngf.fisher.diagonal_head import DiagonalFisher
from ngf.fisher.ekfac import Ekfac
from ngf.fisher.empirical import EmpiricalFisher
from ngf.fisher.kfac import Kfac
from ngf.fisher.solve import choose, conjugate_gradients, solve
from ngf.fisher.true import TrueFisher
from ngf.models import Classifier, head
from ngf.progress import track
from ngf.training import Batches

BATCH = 256  # images that go through the network at once
SMALL = 3_000  # parameters: up to here float64 costs little, and takes a small damping
TINY = 300  # parameters: up to here a dense matrix is the fastest
HASTE = 200  # iterations of conjugate gradients: a fraction of a dense matrix's cost beyond that

# (features_NE, probabilities_NC, labels_N) -> F. All but the empirical one stand for the true F.
CURVATURES: dict[str, Callable[[Tensor, Tensor, Tensor], Curvature]] = {
    "true": lambda h_NE, p_NC, _: TrueFisher(h_NE, p_NC),
    "empirical": EmpiricalFisher,
    "kfac": lambda h_NE, p_NC, _: Kfac(TrueFisher(h_NE, p_NC)),
    "ekfac": lambda h_NE, p_NC, _: Ekfac(TrueFisher(h_NE, p_NC)),
    "diagonal": lambda h_NE, p_NC, _: DiagonalFisher(TrueFisher(h_NE, p_NC)),
}
IDENTITY = "identity"
FISHERS = (*CURVATURES, IDENTITY)


@torch.no_grad()
def purify(
    model: Classifier,
    clean: Clean,
    *,
    views: int,
    steps: int,
    lr: float,
    eta: float,
    damping: float,
    fisher: str,
    recalibrate: bool,
    shift: int,
    seed: int,
) -> Purified:
    """Tune the head by full-batch natural gradient; nothing else of the model is trained.

    Args:
        views: augmented copies of the clean split whose features are the batch.
        lr: 1 is a whole Newton-like step.
        eta: weight of the anchor.
        damping: in units of diag(F0)'s mean entry, so that the scale of features does not matter.
        fisher: how F is computed in each step: "true", "empirical", or the true one approximated
            by "kfac", "ekfac", "diagonal"; "identity" is plain gradient descent on the same loss,
            theta - lr grad L, without damping. F0 is the true Fisher's for all of them.
        recalibrate: compute batch-norm statistics anew on the clean split before everything else.
        shift: pixels of random translation in every view.

    Raises:
        InputError: an option is out of its range, or the system is singular for this damping.
    """
    params.at_least(1, views=views, steps=steps)
    params.at_least(0, lr=lr, eta=eta, damping=damping)
    params.within("shift", shift, 0, min(clean.x_NHWC.shape[1:3]) - 1)
    params.one_of(FISHERS, fisher=fisher)
    model.eval()
    if recalibrate:
        _recalibrate(model, clean, views=views, shift=shift, seed=seed)
    layer = head(model)
    h_NE = _inputs(model, layer, clean, views=views, shift=shift, seed=seed)
    labels_N = clean.y_N.repeat(views)
    start_CE = _matrix(layer).to(h_NE.dtype)
    anchor_CE = TrueFisher(h_NE, (h_NE @ start_CE.T).softmax(1)).diagonal()
    pull_CE = eta * anchor_CE
    held_CE = pull_CE + damping * anchor_CE.mean()
    now_CE = start_CE.clone()
    for step in track(range(1, steps + 1), "natural gradient", steps):
        p_NC = (h_NE @ now_CE.T).softmax(1)
        move_CE = gradient(h_NE, p_NC, labels_N) + pull_CE * (now_CE - start_CE)
        if fisher != IDENTITY:
            move_CE = _natural(CURVATURES[fisher](h_NE, p_NC, labels_N), move_CE, held_CE)
        now_CE -= lr * move_CE
        _put(layer, now_CE)
        trail.mark(model, step, steps)
    return Purified(model, now_CE.numel(), steps)


def gradient(h_NE: Tensor, p_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Of the mean cross-entropy with respect to the head: mean_n (p_n - onehot(y_n)) h_n^T."""
    residual_NC = p_NC.clone()
    residual_NC[torch.arange(len(labels_N), device=labels_N.device), labels_N] -= 1
    return residual_NC.T @ h_NE / len(h_NE)


def _natural(curvature: Curvature, gradient_CE: Tensor, penalty_CE: Tensor) -> Tensor:
    """v of (F + diag(penalty)) v = gradient.

    With an anchor a few dozen products solve the system to 1e-7, in a tenth of the time that a
    dense matrix takes; with hardly any penalty they do not, and `solve` decides.
    """
    if choose(curvature, penalty_CE) == "dense" and gradient_CE.numel() > TINY:
        with contextlib.suppress(InputError):
            found = conjugate_gradients(curvature, gradient_CE, penalty_CE, iterations=HASTE)
            return found.v_CE
    return solve(curvature, gradient_CE, penalty_CE)


def _recalibrate(model: Classifier, clean: Clean, *, views: int, shift: int, seed: int) -> None:
    batches = Batches(clean.x_NHWC, clean.y_N, size=BATCH, shift=shift, flip=clean.flip, seed=seed)
    count = views * batches.per_epoch
    norms.recalibrate(model, track(batches.take(count), "recalibrate", count), clean.y_N.device)


def _inputs(
    model: Classifier, layer: nn.Linear, clean: Clean, *, views: int, shift: int, seed: int
) -> Tensor:
    """The head's inputs [views N, E], a bias's ones included, view by view."""
    generator = torch.Generator(clean.y_N.device).manual_seed(seed)
    h_VND = view_features(
        model, layer, clean, views=views, size=BATCH, shift=shift, generator=generator
    )
    h_NE = with_bias(h_VND.flatten(0, 1), layer.bias is not None)
    return h_NE.double() if layer.out_features * h_NE.shape[1] <= SMALL else h_NE.float()


def _matrix(layer: nn.Linear) -> Tensor:
    """The head's parameters [C, E], the bias in the last column."""
    if layer.bias is None:
        return layer.weight
    return torch.cat([layer.weight, layer.bias[:, None]], 1)


def _put(layer: nn.Linear, w_CE: Tensor) -> None:
    layer.weight.copy_(w_CE[:, : layer.in_features])
    if layer.bias is not None:
        layer.bias.copy_(w_CE[:, -1])
