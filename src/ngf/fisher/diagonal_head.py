"""Any curvature of a head, with its parameters taken for independent."""

from __future__ import annotations

import torch
from torch import Tensor

from ngf.fisher.curvature import Curvature, check_dense


class DiagonalFisher:
    """diag(F): of all diagonal matrices the closest to F in Frobenius norm."""

    def __init__(self, curvature: Curvature) -> None:
        self._diagonal_CE = curvature.diagonal()

    @property
    def shape(self) -> tuple[int, int]:
        classes, inputs = self._diagonal_CE.shape
        return classes, inputs

    @property
    def dtype(self) -> torch.dtype:
        return self._diagonal_CE.dtype

    @property
    def device(self) -> torch.device:
        return self._diagonal_CE.device

    def product(self, v_CE: Tensor) -> Tensor:
        return self._diagonal_CE * v_CE

    def diagonal(self) -> Tensor:
        return self._diagonal_CE

    def dense(self) -> Tensor:
        check_dense(self.shape)
        return torch.diag(self._diagonal_CE.flatten())
