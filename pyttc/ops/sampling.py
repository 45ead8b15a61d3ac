"""What `sample` and `lm_head_topk` share: the parameters of draws, what they may be, and outputs."""

from __future__ import annotations

import math
from typing import Any

import torch

from . import checks
from .topk_score import MAX_K

Number = float | torch.Tensor
Whole = int | torch.Tensor
_ROW_DTYPES = {
    "seed": torch.int64,
    "temperature": torch.float64,
    "top_k": torch.int64,
    "top_p": torch.float64,
    "min_p": torch.float64,
}
_REALS = (torch.float32, torch.float64)


def any_tensor(values: tuple[Any, ...]) -> bool:
    for value in values:  # numbers first: isinstance is slow for tensors
        if not isinstance(value, (int, float)) and isinstance(value, torch.Tensor):
            return True
    return False


def row_values(values: tuple[Any, ...], name: str, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """seed, temperature, top_k, top_p and min_p as tensors [B], B and device those of `like`."""
    if not isinstance(like, torch.Tensor):
        raise TypeError(f"{name}: got {like!r}, expected a tensor")
    return tuple(
        value if isinstance(value, torch.Tensor) else _filled(parameter, value, like)
        for parameter, value in zip(_ROW_DTYPES, values, strict=True)
    )


def _filled(name: str, value: Any, like: torch.Tensor) -> torch.Tensor:
    dtype = _ROW_DTYPES[name]
    if isinstance(value, int):
        fits = -(2**63) <= value < 2**63
    else:
        fits = isinstance(value, float) and dtype is torch.float64
    if not fits:
        kind = "64-bit integer" if dtype is torch.int64 else "number"
        raise TypeError(f"{name}: got {value!r}, expected a {kind} or a tensor [B]")
    return torch.full(like.shape[:1], value, dtype=dtype, device=like.device)


def _check_shared(
    rows: int,
    columns: int,
    device: torch.device,
    path_ids: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor | None,
    topk: int,
) -> None:
    if path_ids.dtype not in checks.INTS:
        checks.fail_dtype("path_ids", path_ids, "int32 or int64")
    if positions.dtype not in checks.INTS:
        checks.fail_dtype("positions", positions, "int32 or int64")
    if path_ids.dim() != 1 or path_ids.shape[0] != rows:
        checks.fail_shape("path_ids", path_ids, f"[{rows}], one a row of logits")
    if positions.dim() != 1 or positions.shape[0] != rows:
        checks.fail_shape("positions", positions, f"[{rows}], one a row of logits")
    if path_ids.device != device or positions.device != device:
        checks.fail_device(device, path_ids=path_ids, positions=positions)
    if topk < 0 or topk > MAX_K or topk > columns:
        checks.fail("topk", topk, f"0 <= topk <= min(V, {MAX_K}) with V = {columns}")
    if mask is not None:
        words = (columns + 31) // 32
        if mask.dtype is not torch.int32:
            checks.fail_dtype("mask", mask, "int32, a bit a column")
        if mask.dim() != 2 or mask.shape[0] != rows or mask.shape[1] != words:
            checks.fail_shape("mask", mask, f"[{rows}, {words}], [B, ceil(V / 32)]")
        if mask.device != device:
            checks.fail_device(device, mask=mask)
        if words > 1 and mask.stride(1) != 1:
            checks.fail_stride(mask=mask)


def check_numbers(
    rows: int,
    columns: int,
    device: torch.device,
    seed: int,
    path_ids: torch.Tensor,
    positions: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    mask: torch.Tensor | None = None,
    topk: int = 0,
) -> None:
    _check_shared(rows, columns, device, path_ids, positions, mask, topk)
    if seed < 0:
        checks.fail("seed", seed, "0 <= seed < 2**63")
    if not 0 <= temperature < math.inf:
        checks.fail("temperature", temperature, "a finite number >= 0")
    if not 0 <= top_p <= 1:
        checks.fail("top_p", top_p, "0 <= top_p <= 1")
    if not 0 <= min_p <= 1:
        checks.fail("min_p", min_p, "0 <= min_p <= 1")


def check_tensors(
    rows: int,
    columns: int,
    device: torch.device,
    seed: torch.Tensor,
    path_ids: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    mask: torch.Tensor | None = None,
    topk: int = 0,
) -> None:
    _check_shared(rows, columns, device, path_ids, positions, mask, topk)
    for name, value in (("seed", seed), ("top_k", top_k)):
        if value.dtype not in checks.INTS:
            checks.fail_dtype(name, value, "int32 or int64")
    for name, value in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p)):
        if value.dtype not in _REALS:
            checks.fail_dtype(name, value, "float32 or float64")
    parameters = dict(seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for name, value in parameters.items():
        if value.dim() != 1 or value.shape[0] != rows:
            checks.fail_shape(name, value, f"[{rows}], one a row of logits, or a number")
        if value.device != device:
            checks.fail_device(device, **{name: value})


def outputs(logits: torch.Tensor, topk: int, stats: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Of the fields of `Sample`, in their order."""
    rows, new, like = logits.shape[0], logits.new_empty, torch.empty_like
    numbers, best = new(rows, dtype=stats), new(rows, topk, dtype=stats)
    return (
        new(rows, dtype=torch.int64),
        numbers,
        like(numbers),
        like(numbers),
        like(numbers),
        new(rows, dtype=torch.bool),
        best,
        like(best, dtype=torch.int64),
    )
