"""select_beams: bound by reading logprobs. One program a group looks for a bound that `width` to CAP of its
children reach, by bisection over the whole order (key, parent, token, column), so that any number of
equal keys is cut exactly; those children are then ranked against each other."""

import torch
import triton
import triton.language as tl

from .common import order_key

BLOCK = 2048


@triton.jit
def norms_kernel(length_ptr, norms_ptr, rows, stride, penalty: tl.float64, BLOCK: tl.constexpr):
    """length ** penalty, rounded once."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = tl.load(length_ptr + row * stride, mask=row < rows, other=1).to(tl.float64)
    exponent = tl.full((), penalty, tl.float64)
    power = tl.exp2(tl.abs(exponent) * tl.log2(n))
    # A power of integers is an integer, and rounding it to float32 must not be off by a tie.
    whole = tl.floor(power + 0.5)
    power = tl.where(tl.abs(power - whole) < power * 1e-13, whole, power)
    power = tl.where(exponent < 0, 1.0 / power, power)
    tl.store(norms_ptr + row, power.to(tl.float32), mask=row < rows)


@triton.jit
def child(
    i,
    live,
    group,
    scores_ptr,
    logprobs_ptr,
    tokens_ptr,
    groups_ptr,
    bonus_ptr,
    norms_ptr,
    score_stride,
    logprob_stride,
    token_stride,
    group_stride,
    bonus_row,
    bonus_column,
    k,
    BONUS: tl.constexpr,
    LENGTH: tl.constexpr,
):
    """Child i of all: is it one of the group, its place in the order (smaller is better), its score."""
    row = (i // k).to(tl.int64)
    column = (i % k).to(tl.int64)
    live = live & (tl.load(groups_ptr + row * group_stride, mask=live, other=-1) == group)
    logprob = tl.load(logprobs_ptr + row * logprob_stride + column, mask=live, other=0.0)
    cumulative = tl.load(scores_ptr + row * score_stride, mask=live, other=0.0) + logprob
    key = cumulative
    if BONUS:
        at = row * bonus_row + column * bonus_column
        key += tl.load(bonus_ptr + at, mask=live, other=0.0)
    if LENGTH:
        norm = tl.load(norms_ptr + row, mask=live, other=1.0)
        key = tl.div_rn(key, norm)
    token = tl.load(tokens_ptr + row * token_stride + column, mask=live, other=-1).to(tl.int64)
    live = live & (token >= 0) & (tl.abs(key) < float("inf"))
    return live, -order_key(key).to(tl.int64), row, token, column, cumulative


@triton.jit
def reaches(key, row, token, column, bound_key, bound_row, bound_token, bound_column):
    last = (token < bound_token) | ((token == bound_token) & (column <= bound_column))
    return (key < bound_key) | (
        (key == bound_key) & ((row < bound_row) | ((row == bound_row) & last))
    )


@triton.jit
def select_beams_kernel(
    scores_ptr,
    logprobs_ptr,
    tokens_ptr,
    groups_ptr,
    bonus_ptr,
    norms_ptr,
    score_stride,
    logprob_stride,
    token_stride,
    group_stride,
    bonus_row,
    bonus_column,
    rows,
    k,
    width,
    chosen_ptr,
    parents_ptr,
    best_tokens_ptr,
    best_scores_ptr,
    BONUS: tl.constexpr,
    LENGTH: tl.constexpr,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    # fmt: off
    args = (
        group, scores_ptr, logprobs_ptr, tokens_ptr, groups_ptr, bonus_ptr, norms_ptr, score_stride,
        logprob_stride, token_stride, group_stride, bonus_row, bonus_column, k,
    )
    # fmt: on
    most: tl.constexpr = 0x7FFFFFFFFFFFFFFF
    children = tl.cast(rows, tl.int64) * k
    total = tl.full((), 0, tl.int64)
    low = tl.full((), most, tl.int64)
    high = tl.full((), -most, tl.int64)
    high_token = tl.full((), 0, tl.int64)
    for first in range(0, children, BLOCK):
        i = first + tl.arange(0, BLOCK).to(tl.int64)
        live, key, row, token, column, score = child(i, i < children, *args, BONUS, LENGTH)
        total += tl.sum(live.to(tl.int64), 0)
        low = tl.minimum(low, tl.min(tl.where(live, key, most), 0))
        high = tl.maximum(high, tl.max(tl.where(live, key, -most), 0))
        high_token = tl.maximum(high_token, tl.max(tl.where(live, token, 0), 0))
    bound_key = tl.full((), most, tl.int64)
    bound_row = tl.full((), most, tl.int64)
    bound_token = tl.full((), most, tl.int64)
    bound_column = tl.full((), most, tl.int64)
    level = tl.full((), 0, tl.int32)
    found = total <= CAP
    while (level < 4) & (found == 0):
        while (low < high) & (found == 0):
            middle = low + (high - low) // 2
            b0 = tl.where(level == 0, middle, bound_key)
            b1 = tl.where(level == 1, middle, bound_row)
            b2 = tl.where(level == 2, middle, bound_token)
            b3 = tl.where(level == 3, middle, bound_column)
            count = tl.full((), 0, tl.int64)
            for first in range(0, children, BLOCK):
                i = first + tl.arange(0, BLOCK).to(tl.int64)
                live, key, row, token, column, score = child(i, i < children, *args, BONUS, LENGTH)
                live = live & reaches(key, row, token, column, b0, b1, b2, b3)
                count += tl.sum(live.to(tl.int64), 0)
            if count >= width:
                high = middle
                found = count <= CAP
            else:
                low = middle + 1
        bound_key = tl.where(level == 0, high, bound_key)
        bound_row = tl.where(level == 1, high, bound_row)
        bound_token = tl.where(level == 2, high, bound_token)
        bound_column = tl.where(level == 3, high, bound_column)
        low = tl.full((), 0, tl.int64)
        high = tl.where(level == 0, rows - 1, tl.where(level == 1, high_token, k - 1)).to(tl.int64)
        level += 1
    chosen_ptr += group * CAP
    kept = tl.full((), 0, tl.int64)
    for first in range(0, children, BLOCK):
        i = first + tl.arange(0, BLOCK).to(tl.int64)
        live, key, row, token, column, score = child(i, i < children, *args, BONUS, LENGTH)
        live = live & reaches(
            key, row, token, column, bound_key, bound_row, bound_token, bound_column
        )
        count = live.to(tl.int64)
        tl.store(chosen_ptr + kept + tl.cumsum(count, 0) - 1, i, mask=live)
        kept += tl.sum(count, 0)
    tl.debug_barrier()
    for first in range(0, kept, BLOCK_I):
        at = first + tl.arange(0, BLOCK_I)
        i = tl.load(chosen_ptr + at, mask=at < kept, other=0)
        live, key, row, token, column, score = child(i, at < kept, *args, BONUS, LENGTH)
        place = tl.zeros((BLOCK_I,), tl.int64)
        for other_first in range(0, kept, BLOCK_J):
            other_at = other_first + tl.arange(0, BLOCK_J)
            j = tl.load(chosen_ptr + other_at, mask=other_at < kept, other=0)
            other, key_j, row_j, token_j, column_j, _ = child(
                j, other_at < kept, *args, BONUS, LENGTH
            )
            better = other[None, :] & reaches(
                key_j[None, :],
                row_j[None, :],
                token_j[None, :],
                column_j[None, :],
                key[:, None],
                row[:, None],
                token[:, None],
                column[:, None] - 1,
            )
            place += tl.sum(better.to(tl.int64), 1)
        to = group * width + place
        live = live & (place < width)
        tl.store(parents_ptr + to, row, mask=live)
        tl.store(best_tokens_ptr + to, token, mask=live)
        tl.store(best_scores_ptr + to, score, mask=live)
    for first in range(kept, width, BLOCK_J):
        at = first + tl.arange(0, BLOCK_J)
        to = group * width + at
        nothing = tl.full((BLOCK_J,), -1, tl.int64)
        tl.store(parents_ptr + to, nothing, mask=at < width)
        tl.store(best_tokens_ptr + to, nothing, mask=at < width)
        tl.store(best_scores_ptr + to, nothing.to(tl.float32) * float("inf"), mask=at < width)


def launch(
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
    parents = torch.empty(count, width, dtype=torch.int64, device=scores.device)
    best_tokens = torch.empty_like(parents)
    best_scores = torch.empty(count, width, dtype=torch.float32, device=scores.device)
    if count == 0:
        return parents, best_tokens, best_scores
    cap = triton.next_power_of_2(max(2 * width, 64))
    chosen = torch.empty(count, cap, dtype=torch.int64, device=scores.device)
    bonus_strides = (0, 0) if bonus is None else (*bonus.stride(), 0)[:2]
    penalise = length is not None and length_penalty != 0
    with torch.cuda.device_of(scores):
        norms = scores
        if penalise and rows:
            norms = torch.empty(rows, dtype=torch.float32, device=scores.device)
            norms_kernel[(triton.cdiv(rows, 128),)](
                length, norms, rows, length.stride(0), length_penalty, 128, enable_fp_fusion=False
            )
        select_beams_kernel[(count,)](
            scores,
            logprobs,
            tokens,
            groups,
            scores if bonus is None else bonus,
            norms,
            scores.stride(0),
            logprobs.stride(0),
            tokens.stride(0),
            groups.stride(0),
            *bonus_strides,
            rows,
            k,
            width,
            chosen,
            parents,
            best_tokens,
            best_scores,
            bonus is not None,
            penalise,
            cap,
            BLOCK,
            32,
            min(cap, 128),
            num_warps=8,
            enable_fp_fusion=False,
        )
    return parents, best_tokens, best_scores
