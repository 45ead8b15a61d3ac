"""select_beams: the best children of each group of beams."""

from __future__ import annotations

import math

import torch

from .. import _C
from ..dispatch import Implementation, cuda, cuda_module, register, triton
from . import checks


def select_beams(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    tokens: torch.Tensor,
    groups: torch.Tensor,
    width: int,
    *,
    bonus: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    length_penalty: float = 0.0,
    num_groups: int | None = None,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best `width` children of each group of rows, best first.

    Child (r, j) extends row r by tokens[r, j]. Its score, and the key by which children are ordered::

        cumulative = scores[r] + logprobs[r, j]
        key        = (cumulative + bonus) / length[r] ** length_penalty

    Each operation is rounded to the dtype of scores; the power is taken in double and rounded once.
    Children are ordered by falling key, then rising row, token and j: the result is exact, the same in
    every implementation. A child with a token below 0, or whose key is not finite, is no candidate.

    Args:
        scores: [R], float32 (float64 with the reference), the cumulative log-probability of each row.
        logprobs: [R, k], the dtype of scores, last dimension contiguous.
        tokens: [R, k], int32 or int64, last dimension contiguous.
        groups: [R], int32 or int64, from 0 to num_groups - 1. Rows of a group need not be neighbours.
        width: how many children each group keeps, at least 1.
        bonus: [R] or [R, k] (last dimension contiguous), the dtype of scores: a verifier's score,
            added to the key only. None: 0.
        length: [R], int32 or int64, at least 1: the tokens of a child of row r.
        length_penalty: finite; other than 0 it needs `length`. 0 orders by the sum, 1 by the mean.
        num_groups: how many groups there are; None: R, so that shapes never depend on data.

    Returns:
        (parents, tokens, scores): [num_groups, width] each, int64, int64 and the dtype of scores: the row
        a child came from, its token, and its cumulative score without bonus or penalty, as the next
        call takes it. Where a group has fewer candidates the rest is -1, -1 and -inf.

    Raises:
        ValueError, TypeError: for an argument of another shape, dtype, stride, device or value.

    Source: beam search with the length normalisation of Wu et al. (arXiv 1609.08144), without its offset.
    """
    parents, best_tokens, best_scores = _op(
        scores,
        logprobs,
        tokens,
        groups,
        width,
        bonus=bonus,
        length=length,
        length_penalty=length_penalty,
        num_groups=num_groups,
        impl=impl,
    )
    return parents, best_tokens, best_scores


def check(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    tokens: torch.Tensor,
    groups: torch.Tensor,
    width: int,
    *,
    bonus: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    length_penalty: float = 0.0,
    num_groups: int | None = None,
) -> None:
    dtype, rows, shape, device = scores.dtype, scores.shape, logprobs.shape, scores.device
    if dtype is not torch.float32 and dtype is not torch.float64:
        checks.fail_dtype("scores", scores, "float32 or float64")
    if len(rows) != 1:
        checks.fail_shape("scores", scores, "[R]")
    if logprobs.dtype is not dtype:
        checks.fail_dtype("logprobs", logprobs, f"{dtype}, as scores")
    if len(shape) != 2 or shape[0] != rows[0]:
        checks.fail_shape("logprobs", logprobs, f"[{rows[0]}, k]")
    if tokens.dtype not in checks.INTS:
        checks.fail_dtype("tokens", tokens, "int32 or int64")
    if tokens.shape != shape:
        checks.fail_shape("tokens", tokens, f"{list(shape)}, as logprobs")
    if groups.dtype not in checks.INTS:
        checks.fail_dtype("groups", groups, "int32 or int64")
    if groups.shape != rows:
        checks.fail_shape("groups", groups, f"[{rows[0]}], one a row")
    if not device == logprobs.device == tokens.device == groups.device:
        checks.fail_device(device, logprobs=logprobs, tokens=tokens, groups=groups)
    if shape[1] > 1 and (logprobs.stride(1) != 1 or tokens.stride(1) != 1):
        checks.fail_stride(logprobs=logprobs, tokens=tokens)
    if width < 1:
        checks.fail("width", width, "at least 1")
    if num_groups is not None and num_groups < 0:
        checks.fail("num_groups", num_groups, "None or at least 0")
    if bonus is not None:
        if bonus.dtype is not dtype:
            checks.fail_dtype("bonus", bonus, f"{dtype}, as scores")
        if bonus.shape != rows and bonus.shape != shape:
            checks.fail_shape("bonus", bonus, f"{list(rows)} or {list(shape)}")
        if bonus.device != device:
            checks.fail_device(device, bonus=bonus)
        if bonus.shape == shape and shape[1] > 1 and bonus.stride(1) != 1:
            checks.fail_stride(bonus=bonus)
    if length is not None:
        if length.dtype not in checks.INTS:
            checks.fail_dtype("length", length, "int32 or int64")
        if length.shape != rows:
            checks.fail_shape("length", length, f"[{rows[0]}], one a row")
        if length.device != device:
            checks.fail_device(device, length=length)
    if length_penalty != 0.0:
        if not -math.inf < length_penalty < math.inf:
            checks.fail("length_penalty", length_penalty, "a finite number")
        if length is None:
            checks.fail("length", None, f"lengths, since length_penalty is {length_penalty}")


def fake(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    tokens: torch.Tensor,
    groups: torch.Tensor,
    width: int,
    *,
    bonus: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    length_penalty: float = 0.0,
    num_groups: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (scores.shape[0] if num_groups is None else num_groups, width)
    parents = scores.new_empty(shape, dtype=torch.int64)
    return parents, torch.empty_like(parents), scores.new_empty(shape)


def reference(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    tokens: torch.Tensor,
    groups: torch.Tensor,
    width: int,
    *,
    bonus: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    length_penalty: float = 0.0,
    num_groups: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, k = logprobs.shape
    count = rows if num_groups is None else num_groups
    checks.check_range(
        "groups", groups, 0, count, f"a group from 0 to num_groups - 1 = {count - 1}"
    )
    if length is not None:
        checks.check_range("length", length, 1, None, "a length of at least 1")
    cumulative = scores[:, None] + logprobs
    key = cumulative
    if bonus is not None:
        key = key + (bonus if bonus.ndim == 2 else bonus[:, None])
    if length is not None and length_penalty != 0:
        key = key / _powers(length, length_penalty).to(key)[:, None]
    candidate = ((tokens >= 0) & key.isfinite()).flatten()
    parent = torch.arange(rows, device=scores.device).repeat_interleave(k)[candidate]
    group = groups.long()[parent]
    token, score = tokens.long().flatten()[candidate], cumulative.flatten()[candidate]
    # Stable sorts from the last criterion to the first; `parent` and j rise already.
    order = torch.argsort(token, stable=True)
    order = order[torch.argsort(parent[order], stable=True)]
    key = key.flatten()[candidate]
    order = order[torch.argsort(key[order], descending=True, stable=True)]
    order = order[torch.argsort(group[order], stable=True)]
    group = group[order]
    place = torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)
    kept = place < width
    at, order = (group[kept], place[kept]), order[kept]
    parents = torch.full((count, width), -1, device=scores.device)
    best_tokens = torch.full_like(parents, -1)
    best_scores = scores.new_full((count, width), -torch.inf)
    parents[at], best_tokens[at], best_scores[at] = parent[order], token[order], score[order]
    return parents, best_tokens, best_scores


def _powers(length: torch.Tensor, exponent: float) -> torch.Tensor:
    """By libm, as the kernels do: torch's vectorised pow has other last bits."""

    def power(n: int) -> float:
        try:
            return math.pow(n, exponent)
        except OverflowError:
            return math.inf

    values = [power(n) for n in length.tolist()]
    return torch.tensor(values, dtype=torch.float64, device=length.device)


def native(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    tokens: torch.Tensor,
    groups: torch.Tensor,
    width: int,
    *,
    bonus: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    length_penalty: float = 0.0,
    num_groups: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count = scores.shape[0] if num_groups is None else num_groups
    parents = scores.new_empty(count, width, dtype=torch.int64)
    best_tokens = torch.empty_like(parents)
    best_scores = scores.new_empty(count, width)
    _C.select_beams(
        scores,
        logprobs,
        tokens,
        groups,
        width,
        bonus,
        length,
        length_penalty,
        parents,
        best_tokens,
        best_scores,
        torch.get_num_threads(),
    )
    return parents, best_tokens, best_scores


def run_cuda(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    tokens: torch.Tensor,
    groups: torch.Tensor,
    width: int,
    *,
    bonus: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    length_penalty: float = 0.0,
    num_groups: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = scores.shape[0]
    count = rows if num_groups is None else num_groups
    parents = scores.new_empty(count, width, dtype=torch.int64)
    best_tokens = torch.empty_like(parents)
    best_scores = scores.new_empty(count, width)
    workspace = scores.new_empty(3 * count * width + 2 * count + rows + 1, dtype=torch.int64)
    cuda_module().select_beams(
        scores,
        logprobs,
        tokens,
        groups,
        width,
        bonus,
        length,
        length_penalty,
        workspace,
        parents,
        best_tokens,
        best_scores,
    )
    return parents, best_tokens, best_scores


_op = register(
    "select_beams(Tensor scores, Tensor logprobs, Tensor tokens, Tensor groups, SymInt width, *,"
    " Tensor? bonus=None, Tensor? length=None, float length_penalty=0.0, SymInt? num_groups=None,"
    " str? impl=None) -> (Tensor, Tensor, Tensor)",
    check=check,
    fake=fake,
    impls={
        "reference": Implementation(reference, device=None),
        "native": Implementation(native, device="cpu"),
        "triton": triton("select_beams"),
        "cuda": cuda(run_cuda),
    },
).call
