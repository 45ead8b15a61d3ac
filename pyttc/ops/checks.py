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


def check_range(
    name: str, values: torch.Tensor, low: int, high: int | None, expected: str
) -> None:
    """For references: names the first element of a 1-D tensor outside low <= value < high."""
    outside = ((values < low) | (False if high is None else values >= high)).nonzero()
    if outside.numel():
        at = int(outside[0, 0])
        raise ValueError(f"{name}: element {at} is {int(values[at])}, expected {expected}")


def _dims(tensor: torch.Tensor) -> list[tuple[int, int]]:
    return sorted((stride, n) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)


def _reach(dims: list[tuple[int, int]]) -> int:
    return sum(stride * (n - 1) for stride, n in dims)


def _reachable(dims: list[tuple[int, int]], distance: int) -> bool:
    if not dims:
        return distance == 0
    stride, n = dims[-1]
    steps, rest = divmod(abs(distance), stride)
    return (steps < n and _reachable(dims[:-1], rest)) or (
        steps + 1 < n and _reachable(dims[:-1], stride - rest)
    )


def overlaps_itself(tensor: torch.Tensor) -> bool:
    """True when elements may share memory: a stride is within reach of the smaller ones."""
    dims = _dims(tensor)
    return tensor.numel() > 0 and any(dims[i][0] <= _reach(dims[:i]) for i in range(len(dims)))


def share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Exact for tensors of the same layout; of others, true as soon as their ranges of addresses meet."""
    dims, width = _dims(a), a.element_size()
    distance = a.data_ptr() - b.data_ptr()
    if not a.numel() or not b.numel():
        return False
    if distance >= (_reach(_dims(b)) + 1) * width or -distance >= (_reach(dims) + 1) * width:
        return False
    if dims != _dims(b) or overlaps_itself(a) or distance % width:
        return True
    return _reachable(dims, distance // width)


def check_apart(written: dict[str, torch.Tensor], read: dict[str, torch.Tensor]) -> None:
    """For references of in-place ops: what is written shares memory with no other argument."""
    for name, tensor in written.items():
        if overlaps_itself(tensor):
            fail(name, "elements that share memory (an expanded tensor?)", "each to have its own")
    names = list(written)
    for i, name in enumerate(names):
        for other in names[:i]:
            if share_memory(written[name], written[other]):
                fail(name, f"memory it shares with {other}", "memory of its own")
        for other, tensor in read.items():
            if share_memory(tensor, written[name]):
                fail(other, f"memory it shares with {name}", "memory of its own")
