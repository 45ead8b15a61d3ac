"""Checks of what callers give: an error names the argument, what came, and what is expected."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .cache import Ints


def array_of(name: str, value: Any, expected: str) -> npt.NDArray[Any]:
    """`value` as a numpy array of numbers or bools."""
    try:
        array = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: got {reprlib.repr(value)}, expected {expected}") from error
    if array.dtype.kind not in "biuf" or array.dtype == np.uint64:  # torch has no uint64
        raise TypeError(f"{name}: got {reprlib.repr(value)}, expected {expected}")
    return array


def whole_numbers(name: str, value: Any, low: int | None = None) -> Ints:
    """`value` as an int64 array of any shape, each at least `low`."""
    if type(value) is int and -(2**63) <= value < 2**63 and (low is None or value >= low):
        return np.array(value)
    expected = "whole numbers" if low is None else f"whole numbers >= {low}"
    array = array_of(name, value, expected)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name}: got {reprlib.repr(value)}, expected {expected}")
    if low is not None and array.size and int(array.min()) < low:
        raise ValueError(f"{name}: got {int(array.min())}, expected {expected}")
    return array.astype(np.int64)


def whole_number(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    array = whole_numbers(name, value, low)
    if array.ndim or (high is not None and int(array) > high):
        span = f" from {low} to {high}" if high is not None else ""
        raise ValueError(f"{name}: got {reprlib.repr(value)}, expected one whole number{span}")
    return int(array)


def for_each(name: str, array: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """A number, or one for each of n paths, as [n]."""
    if array.ndim and array.shape != (n,):
        raise ValueError(f"{name}: got shape {list(array.shape)}, expected a number or [{n}]")
    return array if array.ndim else np.full(n, array)
