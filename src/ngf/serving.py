"""The two graphs of a registered model: they take images as people have them, or refuse.

An exported graph cannot ask what kind of numbers it got: whatever Python asks is answered once, at
export. So one graph asks the numbers themselves, and the other one is told.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

BYTE = 255  # white, of 8 bits
REFUSAL = "pixels must lie in [0, white]: white is 1, 255 for bytes, or as the caller says"


class ByKind(nn.Module):
    """Takes integers as bytes up to 255, and floats as pixels in [0, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits [N, C] of integers in [0, 255], or of floats (up to 32 bits) in [0, 1]."""
        white = _white_by_kind(x_NCHW)
        _refuse_beyond(x_NCHW, white)
        logits_NC: Tensor = self.model(x_NCHW / white)
        return logits_NC


class ByWord(nn.Module):
    """Takes floats, and is told which number is white."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_NCHW: Tensor, white: int) -> Tensor:
        """Logits [N, C] of float32 in [0, white]."""
        torch._check(white >= 1)
        _refuse_beyond(x_NCHW, white)
        logits_NC: Tensor = self.model(x_NCHW / white)
        return logits_NC


def _white_by_kind(x_NCHW: Tensor) -> Tensor:
    """255 of integers, 1 of floats, [1, 1, 1, 1].

    2^64 is 0 in integers of any width, which wrap, and large or infinite in floats.
    """
    power = x_NCHW[:1, :1, :1, :1] * 0 + 16
    for _ in range(4):
        power = power * power
    return torch.where(power == 0, float(BYTE), 1.0)


def _refuse_beyond(x_NCHW: Tensor, white: Tensor | int) -> None:
    """Bytes that are given as [0, 1] must not be answered; a resized image may overshoot a bit."""
    inside = ((x_NCHW >= -white) & (x_NCHW <= 2 * white)).all()
    torch._assert_async(inside, REFUSAL)


def export(model: nn.Module, example_NCHW: Tensor, *, kind: Path, word: Path) -> None:
    """Write both graphs as PT2 archives, for any number of images.

    example_NCHW: two images at least; of one, the graph would take one alone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's, of no use to who promotes
        count = {0: Dim.AUTO}
        by_kind = torch.export.export(ByKind(model), (example_NCHW,), dynamic_shapes=[count])
        by_word = torch.export.export(
            ByWord(model),
            (example_NCHW,),
            {"white": BYTE},
            dynamic_shapes={"x_NCHW": count, "white": Dim.DYNAMIC},
        )
        _save(by_kind, kind)
        _save(by_word, word)


def _save(graph: ExportedProgram, file: Path) -> None:
    """Torch writes the example as a pickle; one of plain numbers names no code."""
    _, named = graph.example_inputs
    graph.example_inputs = ((0,), dict.fromkeys(named, 0))
    torch.export.save(graph, file)
