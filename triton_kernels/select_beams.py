"""select_beams: bound by reading logprobs. A program a row gives each of its children a key that orders it
among all, and puts them where its group's are neighbours. A program a group then looks, by bisection, for a
bound that `width` to CAP of its keys reach; the children that do are ranked against each other."""

import torch
import triton
import triton.language as tl

from .common import halfway, order_key

BLOCK = 8192
MAX_CHILDREN = 2**31 - BLOCK
NOTHING = tl.constexpr(-0x8000000000000000)  # below the key of every candidate


@triton.jit
def norm_of(length, penalty):
    """length ** penalty, rounded once."""
    power = tl.exp2(tl.abs(penalty) * tl.log2(length.to(tl.float64)))
    # A power of integers is an integer, and rounding it to float32 must not be off by a tie.
    whole = tl.floor(power + 0.5)
    power = tl.where(tl.abs(power - whole) < power * 1e-13, whole, power)
    return tl.where(penalty < 0, 1.0 / power, power).to(tl.float32)


STRIDES = [f"{name}_stride" for name in ("score", "logprob", "token", "group", "length")]


@triton.jit(do_not_specialize=[*STRIDES, "bonus_row", "bonus_column", "rows", "k"])
def order_kernel(
    scores_ptr,
    logprobs_ptr,
    tokens_ptr,
    groups_ptr,
    bonus_ptr,
    length_ptr,
    score_stride,
    logprob_stride,
    token_stride,
    group_stride,
    length_stride,
    bonus_row,
    bonus_column,
    penalty: tl.float64,
    rows,
    k,
    order_ptr,
    columns_ptr,
    keys_ptr,
    BONUS: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Rows in order of their group, and each one's children in order of their token: their columns and keys.
    A key is the child's own, and behind it its place in this order, by which equal ones are told apart."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.load(groups_ptr + row * group_stride)
    place = 0
    for first in range(0, rows, BLOCK):
        other = first + tl.arange(0, BLOCK).to(tl.int64)
        others = tl.load(groups_ptr + other * group_stride, mask=other < rows, other=0)
        before = (others < group) | ((others == group) & (other < row))
        place += tl.sum((before & (other < rows)).to(tl.int32), 0)
    tl.store(order_ptr + place, row.to(tl.int32))
    score = tl.load(scores_ptr + row * score_stride)
    norm = 1.0
    if LENGTH:
        length = tl.load(length_ptr + row * length_stride)
        norm = norm_of(length, tl.full((), penalty, tl.float64))
    for first in range(0, k, BLOCK_I):
        column = first + tl.arange(0, BLOCK_I)
        live = column < k
        token = tl.load(tokens_ptr + row * token_stride + column, mask=live, other=-1)
        nth = tl.zeros((BLOCK_I,), tl.int32)
        for first_j in range(0, k, BLOCK_J):
            j = first_j + tl.arange(0, BLOCK_J)
            token_j = tl.load(tokens_ptr + row * token_stride + j, mask=j < k, other=0)
            same = (token_j[None, :] == token[:, None]) & (j[None, :] < column[:, None])
            before = (token_j[None, :] < token[:, None]) | same
            nth += tl.sum((before & (j < k)[None, :]).to(tl.int32), 1)
        logprob = tl.load(logprobs_ptr + row * logprob_stride + column, mask=live, other=0.0)
        key = score + logprob
        if BONUS:
            at = row * bonus_row + column * bonus_column
            key += tl.load(bonus_ptr + at, mask=live, other=0.0)
        if LENGTH:
            key = tl.div_rn(key, tl.full((BLOCK_I,), norm, tl.float32))
        place_of = place * k + nth
        full = (order_key(key).to(tl.int64) << 32) | (0x7FFFFFFF - place_of)
        full = tl.where((token >= 0) & (tl.abs(key) < float("inf")), full, NOTHING)
        tl.store(columns_ptr + place_of, column, mask=live)
        tl.store(keys_ptr + place_of, full, mask=live)


@triton.jit(do_not_specialize=[*STRIDES[:4], "rows", "k", "width"])
def select_beams_kernel(
    scores_ptr,
    logprobs_ptr,
    tokens_ptr,
    groups_ptr,
    score_stride,
    logprob_stride,
    token_stride,
    group_stride,
    rows,
    k,
    width,
    order_ptr,
    columns_ptr,
    keys_ptr,
    chosen_ptr,
    parents_ptr,
    best_tokens_ptr,
    best_scores_ptr,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    begin = 0
    end = 0
    for first in range(0, rows, BLOCK):
        row = first + tl.arange(0, BLOCK).to(tl.int64)
        groups = tl.load(groups_ptr + row * group_stride, mask=row < rows, other=0)
        begin += tl.sum(((groups < group) & (row < rows)).to(tl.int32), 0)
        end += tl.sum(((groups <= group) & (row < rows)).to(tl.int32), 0)
    begin *= k
    end *= k
    low = tl.full((), 0x7FFFFFFFFFFFFFFF, tl.int64)
    high = tl.full((), NOTHING, tl.int64)
    count = 0
    for first in range(begin, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        key = tl.load(keys_ptr + i, mask=i < end, other=NOTHING)
        candidate = key > NOTHING
        count += tl.sum(candidate.to(tl.int32), 0)
        low = tl.minimum(low, tl.min(tl.where(candidate, key, 0x7FFFFFFFFFFFFFFF), 0))
        high = tl.maximum(high, tl.max(key, 0))
    while count > CAP:
        middle = halfway(low, high)
        reached = 0
        for first in range(begin, end, BLOCK):
            i = first + tl.arange(0, BLOCK)
            key = tl.load(keys_ptr + i, mask=i < end, other=NOTHING)
            reached += tl.sum((key >= middle).to(tl.int32), 0)
        if reached >= width:
            low = middle
            count = reached
        else:
            high = middle - 1
    chosen_ptr += group * CAP
    kept = 0
    for first in range(begin, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        key = tl.load(keys_ptr + i, mask=i < end, other=NOTHING)
        take = key >= low
        tl.store(chosen_ptr + kept + tl.cumsum(take.to(tl.int32), 0) - 1, key, mask=take)
        kept += tl.sum(take.to(tl.int32), 0)
    tl.debug_barrier()
    for first in range(0, kept, BLOCK_I):
        at = first + tl.arange(0, BLOCK_I)
        mine = tl.load(chosen_ptr + at, mask=at < kept, other=NOTHING)
        place = tl.zeros((BLOCK_I,), tl.int32)
        for first_j in range(0, kept, BLOCK_J):
            j = first_j + tl.arange(0, BLOCK_J)
            other = tl.load(chosen_ptr + j, mask=j < kept, other=NOTHING)
            place += tl.sum((other[None, :] > mine[:, None]).to(tl.int32), 1)
        live = (at < kept) & (place < width)
        child = (0x7FFFFFFF - (mine & 0x7FFFFFFF)).to(tl.int32)
        row = tl.load(order_ptr + child // k, mask=live, other=0).to(tl.int64)
        column = tl.load(columns_ptr + child, mask=live, other=0)
        token = tl.load(tokens_ptr + row * token_stride + column, mask=live, other=0)
        logprob = tl.load(logprobs_ptr + row * logprob_stride + column, mask=live, other=0.0)
        score = tl.load(scores_ptr + row * score_stride, mask=live, other=0.0) + logprob
        to = group * width + place
        tl.store(parents_ptr + to, row, mask=live)
        tl.store(best_tokens_ptr + to, token.to(tl.int64), mask=live)
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
    if rows * k > MAX_CHILDREN:
        raise ValueError(
            f"logprobs: got {rows * k} elements, expected at most {MAX_CHILDREN} with Triton"
        )
    device = scores.device
    cap = triton.next_power_of_2(max(2 * width, 64))
    chosen = torch.empty(count, cap, dtype=torch.int64, device=device)
    order = torch.empty(rows, dtype=torch.int32, device=device)
    columns = torch.empty(rows * k, dtype=torch.int32, device=device)
    keys = torch.empty(rows * k, dtype=torch.int64, device=device)
    bonus_strides = (0, 0) if bonus is None else (*bonus.stride(), 0)[:2]
    penalise = length is not None and length_penalty != 0
    block = 32 if k <= 32 else 64
    strides = scores.stride(0), logprobs.stride(0), tokens.stride(0), groups.stride(0)
    with torch.cuda.device_of(scores):
        if rows * k > 0:
            order_kernel[(rows,)](
                scores,
                logprobs,
                tokens,
                groups,
                scores if bonus is None else bonus,
                length if penalise else groups,
                *strides,
                length.stride(0) if penalise else 0,
                *bonus_strides,
                length_penalty,
                rows,
                k,
                order,
                columns,
                keys,
                bonus is not None,
                penalise,
                1024,
                block,
                block,
                num_warps=4,
                enable_fp_fusion=False,
            )
        select_beams_kernel[(count,)](
            scores,
            logprobs,
            tokens,
            groups,
            *strides,
            rows,
            k,
            width,
            order,
            columns,
            keys,
            chosen,
            parents,
            best_tokens,
            best_scores,
            cap,
            BLOCK,
            32,
            min(cap, 256),
            num_warps=16,
            enable_fp_fusion=False,
        )
    return parents, best_tokens, best_scores
