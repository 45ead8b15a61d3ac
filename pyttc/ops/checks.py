"""Errors for arguments: each names the argument, what came and what is expected.

The conditions themselves stand in each op's `check`, inline: it runs on every call, and a call has a
few microseconds.
"""

from __future__ import annotations

from typing import NoReturn

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FLOAT_NAMES = "float32, bfloat16, float16 or float64"
INTS = (torch.int32, torch.int64)


def fail(name: str, got: object, expected: str) -> NoReturn:
    raise ValueError(f"{name}: got {got}, expected {expected}")


def fail_shape(name: str, tensor: torch.Tensor, expected: str) -> NoReturn:
    fail(name, f"shape {list(tensor.shape)}", expected)


def fail_dtype(name: str, tensor: torch.Tensor, expected: str) -> NoReturn:
    raise TypeError(f"{name}: got {tensor.dtype}, expected {expected}")


def fail_device(device: torch.device, **tensors: torch.Tensor) -> NoReturn:
    """Names the first of `tensors` that is not on `device`, where the op's first tensor is."""
    name, tensor = next((n, t) for n, t in tensors.items() if t.device != device)
    fail(name, f"a tensor on {tensor.device}", f"one on {device}, with the first argument")


def fail_stride(**tensors: torch.Tensor) -> NoReturn:
    """Names the first of `tensors` whose last dimension is not contiguous."""
    name, tensor = next((n, t) for n, t in tensors.items() if t.stride(-1) != 1)
    fail(name, f"stride {tensor.stride(-1)} in the last dimension", "1: call .contiguous()")
