"""Sharpness with intervals: largest Hessian eigenvalue, traces of Hessian and Fisher, density.

All of the mean cross-entropy, over all trained parameters, in evaluation mode. Products with the
Hessian and the density are curvlinops', eigenvectors ARPACK's through SciPy.

Along a direction v, the logits' first and second derivative (`along.py`) give v'H_i v and v'F_i v
of every single image i. For the leading unit eigenvector the mean of v'H_i v over the images is the
eigenvalue, and to first order an image moves the eigenvalue by just its own share: the spread over
images is the interval that other images of the same kind would give. For random signs v the means
are Hutchinson's estimates of the traces (1989), whose error has two parts, images and probes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ngf.curvature.along import curvatures
from ngf.curvature.parameters import trained
from ngf.progress import track

TOLERANCE = 0.05  # relative residual of an eigenvector: the eigenvalue's error is of its square
KRYLOV = 6  # vectors that ARPACK keeps
POINTS = 256  # of a density
AT_ONCE = 250  # images of a product
Z_95 = 1.959963984540054

Blocks = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Spectrum:
    """What `measure` finds of one model.

    values_N: the images' shares of the largest eigenvalue, which is their mean, float64.
    top: the largest eigenvalues. vectors_KD: their unit eigenvectors.
    trace, fisher: {"value", "se", "low", "high"}. density: {"grid", "density"}, the eigenvalues
    [POINTS] and the share of all eigenvalues for a unit there; None where it was not asked for.
    products: of the whole Hessian with a vector.
    """

    loss: float
    values_N: Tensor
    top: list[float]
    vectors_KD: Tensor
    trace: dict[str, float]
    fisher: dict[str, float]
    density: dict[str, list[float]] | None
    products: int

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "loss": self.loss,
            "lambda_max": interval(self.values_N[None]),
            "lambda_top": self.top,
            "trace": self.trace,
            "fisher_trace": self.fisher,
            "products": self.products,
        }
        return found if self.density is None else {**found, "density": self.density}


def measure(
    model: nn.Module,
    x_NCHW: Tensor,
    y_N: Tensor,
    *,
    probes: int,
    lanczos: int,
    top: int = 2,
    seed: int = 0,
) -> Spectrum:
    """The curvature of the loss on images in [0, 1] with labels int64.

    Args:
        probes: random directions of the traces. lanczos: steps towards the density; 0: none.
        top: so many of the largest eigenvalues.
        seed: of directions and starts; the same for all models that are to be compared.
    """
    from curvlinops import HessianLinearOperator

    parameters = list(trained(model).values())
    device = parameters[0].device
    blocks = list(zip(x_NCHW.split(AT_ONCE), y_N.split(AT_ONCE), strict=True))
    random = torch.Generator().manual_seed(seed)
    with _as_it_needs(device, seed):
        hessian = HessianLinearOperator(
            model, nn.CrossEntropyLoss(), parameters, blocks, check_deterministic=False
        )
        start_D = torch.randn(hessian.shape[0], generator=random, dtype=torch.float64)
        values, vectors_KD, products = leading(hessian, start_D, top)
        density = _density(hessian, lanczos) if lanczos else None
        values_N, _, loss_N = _per_image(model, blocks, vectors_KD[0])
        found_P = []
        for _ in track(range(probes), "trace of the Hessian", probes):
            signs_D = torch.randint(2, start_D.shape, generator=random).to(vectors_KD) * 2 - 1
            found_P.append(_per_image(model, blocks, signs_D)[:2])
    trace_PN, fisher_PN = (torch.stack(parts) for parts in zip(*found_P, strict=True))
    return Spectrum(
        loss=loss_N.mean().item(),
        values_N=values_N,
        top=values,
        vectors_KD=vectors_KD,
        trace=interval(trace_PN),
        fisher=interval(fisher_PN),
        density=density,
        products=products + lanczos,
    )


def leading(operator: Any, start_D: Tensor, k: int) -> tuple[list[float], Tensor, int]:
    """(k largest eigenvalues, their unit eigenvectors [k, D], products) of a linear operator."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    inner, done = operator.to_scipy(), 0

    def product(v_D: Any) -> Any:
        nonlocal done
        done += 1
        return inner @ v_D

    counted = LinearOperator(inner.shape, matvec=product, dtype=inner.dtype)
    ncv = min(KRYLOV, inner.shape[0])
    values, vectors = eigsh(counted, k, which="LA", v0=start_D.numpy(), ncv=ncv, tol=TOLERANCE)
    order = values.argsort()[::-1]
    found_KD = torch.tensor(vectors.T[order].copy()).to(operator.device, operator.dtype)
    return [float(v) for v in values[order]], found_KD, done


def interval(values_PN: Tensor) -> dict[str, float]:
    """Mean, standard error and 95% interval of values of P probes on the same N images.

    The error's square is the images' variance of the probes' mean over N, and the probes' variance
    of the images' mean over P; what both share is counted twice, so it is never too small.
    """
    over_images = values_PN.mean(0).var() / values_PN.shape[1]
    over_probes = values_PN.mean(1).var() / len(values_PN) if len(values_PN) > 1 else 0.0
    mean, error = values_PN.mean().item(), math.sqrt(over_images + over_probes)
    return {"value": mean, "se": error, "low": mean - Z_95 * error, "high": mean + Z_95 * error}


def ratio(values_N: Tensor, base_N: Tensor) -> dict[str, float]:
    """Mean of the first over mean of the second on the same images, with its 95% interval.

    The ratio estimator of survey sampling (Cochran 1977, chapter 6): what value - ratio * base
    leaves is its error.
    """
    found = (values_N.mean() / base_N.mean()).item()
    left_N = values_N - found * base_N
    error = (left_N.std() / math.sqrt(len(left_N)) / base_N.mean().abs()).item()
    return {"value": found, "low": found - Z_95 * error, "high": found + Z_95 * error}


def compare(spectra: Mapping[str, Spectrum]) -> dict[str, Any]:
    """Each model's numbers, and its largest eigenvalue over the reference's."""
    values = {name: spectrum.values_N for name, spectrum in spectra.items()}
    return {
        "n": len(values["model"]),
        "ratio": ratio(values["model"], values["reference"]),
        "ratio_victim": ratio(values["victim"], values["reference"]),
        **{name: spectrum.as_dict() for name, spectrum in spectra.items()},
    }


def _per_image(model: nn.Module, blocks: Blocks, v_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(v'H_i v, v'F_i v, loss) of all images, each [N] in float64 on the CPU."""
    parts = [curvatures(model, x_BCHW, y_B, v_D) for x_BCHW, y_B in blocks]
    hessian_N, fisher_N, loss_N = (
        torch.cat(part).double().cpu() for part in zip(*parts, strict=True)
    )
    return hessian_N, fisher_N, loss_N


def _density(hessian: Any, steps: int) -> dict[str, list[float]]:
    """Lanczos quadrature of the spectral density (Papyan 2020, JMLR 21, algorithm 2)."""
    from curvlinops.papyan2020traces import spectrum

    values_L, vectors_LL = spectrum.fast_lanczos(hessian, steps)
    ends = (values_L.min().item(), values_L.max().item())
    grid, density = spectrum.lanczos_approximate_spectrum_from_iter(
        (values_L, vectors_LL), ends, POINTS, kappa=3.0, margin=0.05
    )
    return {"grid": _short(grid), "density": _short(density)}


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


@contextmanager
def _as_it_needs(device: torch.device, seed: int) -> Iterator[None]:
    """curvlinops draws from torch's own generator; fused attention has no second derivative."""
    gpus = [device] if device.type == "cuda" else []
    with (
        warnings.catch_warnings(),
        sdpa_kernel(SDPBackend.MATH),
        torch.random.fork_rng(gpus),
    ):
        # torch lacks a rule for a batch of vectors in places; a single vector needs none.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        torch.manual_seed(seed)
        yield
