"""EKFAC of one linear layer, as NGF's released optimizer computes it.

EKFAC (George et al. 2018, arXiv 1806.03884) is K-FAC (Martens & Grosse 2015, arXiv 1503.05671)
whose eigenvalues are measured instead of multiplied. The reference here is not the paper but
`natural_gradient_optimizer.py` of the anonymous repository kr-anonymous/ngf-animus, its slips
included, because `ngf_released` asks what that code does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Steps between refreshes: of the factors, of the measured eigenvalues, of the eigenvectors.
FACTORS_EVERY, SCALE_EVERY, EIGENVECTORS_EVERY = 10, 10, 100
SMALLEST = 1e-10  # eigenvalues of a factor at or below it count as 0


class Ekfac:
    """Turns the layer's gradient into its natural gradient, step by step.

    Shapes: B images, C outputs, D inputs and a column of ones for the bias. The gradients of the
    batch-mean loss come from the labels of the data and are the very ones to be preconditioned:
    an empirical Fisher.

    Args:
        damping: added to the eigenvalues of the layer's Fisher, an absolute number.
        stat_decay: weight of the past in every running average, in [0, 1].
        kl_clip: largest sum of natural gradient times gradient times lr².
    """

    basis_C: Tensor  # eigenvectors, as columns
    basis_D: Tensor
    scale_CD: Tensor  # eigenvalues of the layer's Fisher
    _input: Tensor  # [B, D], without the column of ones
    _output_gradient: Tensor  # [B, C], of the batch-mean loss

    def __init__(
        self, layer: nn.Linear, *, damping: float, stat_decay: float, kl_clip: float
    ) -> None:
        self.layer = layer
        self.damping, self.stat_decay, self.kl_clip = damping, stat_decay, kl_clip
        weight = layer.weight
        inputs = layer.in_features + (layer.bias is not None)
        self.factor_DD = torch.eye(inputs, dtype=weight.dtype, device=weight.device)
        self.factor_CC = torch.eye(layer.out_features, dtype=weight.dtype, device=weight.device)
        self.step = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, keep what the layer gets forwards and backwards in each pass."""
        hook = self.layer.register_forward_hook(self._keep_input)
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def precondition(self, lr: float) -> None:
        """Replace the layer's gradient by its clipped natural gradient; once after each backward.

        Raises:
            FloatingPointError: a factor is not finite, so it has no eigenvectors.
        """
        input_BD, gradient_BC = self._batch()
        if self.step % FACTORS_EVERY == 0:
            self._update_factors(input_BD, gradient_BC)
        if self.step % EIGENVECTORS_EVERY == 0:
            self._update_eigenvectors()
        if self.step % SCALE_EVERY == 0 and self.step > 0:
            self._update_scale(input_BD, gradient_BC)
        plain_CD = self._matrix()
        natural_CD = self.natural(plain_CD)
        moved = (natural_CD * plain_CD * lr**2).sum()
        self._write((self.kl_clip / moved).sqrt().clamp_max(1) * natural_CD)
        self.step += 1

    def natural(self, gradient_CD: Tensor) -> Tensor:
        """The gradient divided by the damped eigenvalues, in the eigenvectors' basis."""
        projected_CD = self.basis_C.T @ gradient_CD @ self.basis_D
        return self.basis_C @ (projected_CD / (self.scale_CD + self.damping)) @ self.basis_D.T

    def _keep_input(self, _: nn.Module, args: tuple[Tensor, ...], output_BC: Tensor) -> None:
        self._input = args[0].detach()
        output_BC.register_hook(self._keep_gradient)

    def _keep_gradient(self, gradient_BC: Tensor) -> None:
        self._output_gradient = gradient_BC.detach()

    def _batch(self) -> tuple[Tensor, Tensor]:
        """The layer's inputs with a column of ones, and each image's own output gradient."""
        dtype = self.layer.weight.dtype  # autocast computes in another
        input_BD, gradient_BC = self._input.to(dtype), self._output_gradient.to(dtype)
        if self.layer.bias is not None:
            input_BD = torch.cat([input_BD, torch.ones_like(input_BD[:, :1])], 1)
        return input_BD, gradient_BC * len(gradient_BC)  # undoes the mean over the batch

    def _update_factors(self, input_BD: Tensor, gradient_BC: Tensor) -> None:
        keep = self.stat_decay
        self.factor_DD.lerp_(input_BD.T @ input_BD / len(input_BD), 1 - keep)
        self.factor_CC.lerp_(gradient_BC.T @ gradient_BC / len(gradient_BC), 1 - keep)

    def _update_eigenvectors(self) -> None:
        if not (self.factor_CC.isfinite().all() and self.factor_DD.isfinite().all()):
            raise FloatingPointError("a factor of the Fisher is not finite")
        values_C, self.basis_C = torch.linalg.eigh(self.factor_CC)
        values_D, self.basis_D = torch.linalg.eigh(self.factor_DD)
        self.scale_CD = torch.outer(
            torch.where(values_C > SMALLEST, values_C, 0),
            torch.where(values_D > SMALLEST, values_D, 0),
        )

    def _update_scale(self, input_BD: Tensor, gradient_BC: Tensor) -> None:
        # The mean square of Q_C g Q_D^T, as released; Q_C^T g Q_D would be the projection that
        # `natural` uses. So the result depends on the eigenvectors' signs, which are arbitrary.
        # Each image's g is an outer product, and therefore so is its projection.
        left_BC, right_BD = gradient_BC @ self.basis_C.T, input_BD @ self.basis_D.T
        square_CD = left_BC.square().T @ right_BD.square() / len(input_BD)
        self.scale_CD.lerp_(square_CD, 1 - self.stat_decay)

    def _matrix(self) -> Tensor:
        """The layer's gradient as [C, D], the bias's in the last column."""
        weight_CD = _gradient(self.layer.weight)
        if self.layer.bias is None:
            return weight_CD
        return torch.cat([weight_CD, _gradient(self.layer.bias)[:, None]], 1)

    def _write(self, gradient_CD: Tensor) -> None:
        _gradient(self.layer.weight).copy_(gradient_CD[:, : self.layer.in_features])
        if self.layer.bias is not None:
            _gradient(self.layer.bias).copy_(gradient_CD[:, -1])


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
