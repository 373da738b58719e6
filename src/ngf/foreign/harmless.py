"""What a stranger's pickle may hold beside weights: numpy's numbers and arrays, paths.

A pickle names the functions that make them. Its readers call none that they were not allowed, and
numpy's own ones are not made for strangers: a dtype that a pickle describes may take any eight
bytes for a Python object. So the names stand for functions of this file, which take numbers and
text by their bytes and nothing else. Written again, all is numpy's.
"""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numpy as np

PLAIN = r"b1|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU][1-9]\d{0,5}"  # numbers and text


class Kind:
    """A dtype."""

    def __init__(self, code: str, *_: bool) -> None:
        if not isinstance(code, str) or not re.fullmatch(PLAIN, code):
            raise UnpicklingError(f"an array of numpy's {code} is no plain data")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """The order of bytes; what else a pickle says of its dtype follows from its name."""
        self.dtype = self.dtype.newbyteorder(state[1])

    def __reduce__(self) -> Any:
        return self.dtype.__reduce__()

    def values(self, data: bytes) -> np.ndarray:
        return np.frombuffer(bytearray(data), self.dtype)


class Array:
    """An array, which is empty until its pickle says what it holds."""

    def __init__(self) -> None:
        self.values = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, data = state
        _check(kind)
        if isinstance(data, str):  # bytes of Python 2, read as Latin 1
            data = encode(data)
        self.values = kind.values(data).reshape(shape, order="F" if by_columns else "C")

    def __reduce__(self) -> Any:
        return self.values.__reduce__()


def scalar(kind: Kind, data: bytes) -> np.generic:
    _check(kind)
    (value,) = kind.values(data)
    found: np.generic = value
    return found


def reconstruct(*_: Any) -> Array:
    return Array()


def encode(text: str, code: str = "latin1") -> bytes:
    """How pickles of protocol 2 write bytes."""
    if code != "latin1":
        raise UnpicklingError(f"bytes are written in latin1, not {code}")
    return text.encode(code)


def nothing() -> bytes:
    """How the bytes of an empty array are written."""
    return b""


def _check(kind: Any) -> None:
    if not isinstance(kind, Kind):
        raise UnpicklingError(f"{type(kind).__name__} is no dtype of plain data")


Allowed = Callable[..., Any] | tuple[Callable[..., Any], str]
ARRAYS: list[tuple[Callable[..., Any], str]] = [
    (Kind, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
NUMPY: list[Allowed] = [
    *ARRAYS,
    (nothing, "builtins.bytes"),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
PATHS: list[Allowed] = [
    (kind, f"{module}.{name}")
    for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
    for name, kind in (
        ("PosixPath", pathlib.PosixPath),
        ("PurePosixPath", pathlib.PurePosixPath),
        ("WindowsPath", pathlib.PureWindowsPath),
        ("PureWindowsPath", pathlib.PureWindowsPath),
    )
]
ALLOWED: list[Allowed] = [argparse.Namespace, *NUMPY, *PATHS]  # the first: a trainer's options
