"""sample: bound by one read of the logits, which the first kernel does (logits.py). The second, a program a
row, draws from the tiles' sums, or from the candidates where these hold all that the filters keep;
it says so of each row, and a third kernel reads again those rows of which it does not."""

import torch
import triton
import triton.language as tl

from . import logits as rows_of
from .common import order_key, uniform, value_of
from .logits import (
    NO_KEY,
    is_valid,
    load_candidates,
    load_logits,
    log2_weight,
    log_weight,
    row_entropy,
    row_sums,
    scale_of,
    write_topk,
)

LEAST_CANDIDATES = 128  # a tile, where top_k does not say how many are enough


@triton.jit
def load(
    first,
    end,
    logits_ptr,
    mask_ptr,
    values_ptr,
    counts_ptr,
    largest,
    scale,
    MASK: tl.constexpr,
    WHOLE: tl.constexpr,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of the row (WHOLE), or of its candidates, in order of index: keys, and weights in float64,
    NO_KEY and 0 where nothing is to be drawn."""
    if WHOLE:
        x, _, live = load_logits(logits_ptr, mask_ptr, first + tl.arange(0, BLOCK), end, MASK)
    else:
        _, x, live = load_candidates(first, values_ptr, counts_ptr, end, CAP, BLOCK)
    live = live & (x > float("-inf"))
    weight = tl.where(live, tl.exp2(log2_weight(x, largest, scale)), 0.0)
    return tl.where(live, order_key(x), NO_KEY).to(tl.int64), weight.to(tl.float64)


@triton.jit
def reaching(
    bound,
    end,
    source,
    MASK: tl.constexpr,
    WHOLE: tl.constexpr,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Number and mass of columns whose key is `bound` or larger."""
    count = tl.full((), 0, tl.int64)
    mass = tl.full((), 0.0, tl.float64)
    for first in range(0, end, BLOCK):
        key, weight = load(first, end, *source, MASK, WHOLE, CAP, BLOCK)
        count += tl.sum((key >= bound).to(tl.int64), 0)
        mass += tl.sum(tl.where(key >= bound, weight, 0.0), 0)
    return count, mass


@triton.jit
def kept(key, weight, ties, bound, need, least):
    """Which columns of a block are kept: above the bound, or among the first `need` on it."""
    tie = key == bound
    nth = ties + tl.cumsum(tie.to(tl.int64), 0)
    keep = ((key > bound) | (tie & (nth <= need))) & (weight >= least) & (weight > 0.0)
    return keep, ties + tl.sum(tie.to(tl.int64), 0)


@triton.jit
def draw_filtered(
    end,
    source,
    largest,
    scale,
    total,
    top_k,
    top_p,
    min_p,
    u,
    outside,
    enough,
    MASK: tl.constexpr,
    WHOLE: tl.constexpr,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Applies the filters and draws. Columns that are not in the source have keys of at most `outside`
    (NO_KEY: all are in it), and it holds the best `enough` of the row.

    Returns whether the source held all that is kept, the drawn one's index in it, the kept mass."""
    nothing: tl.constexpr = NO_KEY
    all_ties: tl.constexpr = 0x7FFFFFFFFFFFFFFF
    bound = outside.to(tl.int64)
    need = tl.where(outside == nothing, all_ties, 0)
    complete = outside == nothing
    covered = complete
    highest = order_key(largest).to(tl.int64)
    mass = total
    known = top_k <= 0
    if top_k > 0:
        low = tl.full((), nothing + 1, tl.int64)
        high = highest
        count, above_mass = reaching(low, end, source, MASK, WHOLE, CAP, BLOCK)
        known = complete | (top_k <= enough)
        if known:
            covered = tl.full((), True, tl.int1)
            bound = tl.full((), nothing, tl.int64)
            need = tl.full((), 0, tl.int64)
            mass = above_mass
        if known & (count > top_k):
            while (low < high) & (count != top_k):
                middle = low + (high - low + 1) // 2
                reached, _ = reaching(middle, end, source, MASK, WHOLE, CAP, BLOCK)
                if reached >= top_k:
                    low = middle
                    count = reached
                else:
                    high = middle - 1
            above, mass = reaching(low + 1, end, source, MASK, WHOLE, CAP, BLOCK)
            need = top_k - above
            bound = low
            one = tl.exp2(log2_weight(value_of(low), largest, scale)).to(tl.float64)
            mass += need.to(tl.float64) * one
    if (top_p < 1.0) & known:
        target = top_p * mass
        low = tl.where(covered, bound, bound + 1)
        count, above_mass = reaching(low, end, source, MASK, WHOLE, CAP, BLOCK)
        if covered | (above_mass >= target):
            high = highest
            above = tl.full((), 0, tl.int64)  # columns with keys above `high`
            while (low < high) & (count - above > 1):
                middle = low + (high - low + 1) // 2
                reached, above_mass = reaching(middle, end, source, MASK, WHOLE, CAP, BLOCK)
                if above_mass >= target:
                    low = middle
                    count = reached
                else:
                    high = middle - 1
                    above = reached
            if count - above <= 1:  # one column is left: it is the last one kept
                bound = low - 1
                need = tl.full((), 0, tl.int64)
            else:
                _, above_mass = reaching(low + 1, end, source, MASK, WHOLE, CAP, BLOCK)
                one = tl.exp2(log2_weight(value_of(low), largest, scale)).to(tl.float64)
                wanted = tl.ceil((target - above_mass) / tl.maximum(one, 1e-300))
                wanted = tl.maximum(tl.minimum(wanted, 4.0e18), 1.0).to(tl.int64)
                need = tl.where(low == bound, tl.minimum(need, wanted), wanted)
                bound = low
            covered = tl.full((), True, tl.int1)
    if (covered == 0) & (min_p > 0.0) & known:
        beyond = tl.exp2(log2_weight(value_of(outside), largest, scale)).to(tl.float64)
        covered = beyond < min_p
    token = tl.full((), -1, tl.int64)
    mass = tl.full((), 0.0, tl.float64)
    if covered:
        ties = tl.full((), 0, tl.int64)
        for first in range(0, end, BLOCK):
            key, weight = load(first, end, *source, MASK, WHOLE, CAP, BLOCK)
            keep, ties = kept(key, weight, ties, bound, need, min_p)
            mass += tl.sum(tl.where(keep, weight, 0.0), 0)
        target = u * mass
        ties = tl.full((), 0, tl.int64)
        before = tl.full((), 0.0, tl.float64)
        found = tl.full((), False, tl.int1)
        for first in range(0, end, BLOCK):
            if found == 0:
                key, weight = load(first, end, *source, MASK, WHOLE, CAP, BLOCK)
                keep, ties = kept(key, weight, ties, bound, need, min_p)
                weight = tl.where(keep, weight, 0.0)
                index, found = first_beyond(weight, before, target, BLOCK)
                token = tl.where(index >= 0, first + index, token)
                before += tl.sum(weight, 0)
    return covered, token, mass


@triton.jit
def first_beyond(weight, before, target, BLOCK: tl.constexpr):
    """The first index at which before + cumulative weight exceeds the target, and True; or where none does
    the last one with weight (-1: none), and False."""
    i = tl.arange(0, BLOCK).to(tl.int64)
    beyond = (before + tl.cumsum(weight, 0) > target) & (weight > 0.0)
    first = tl.min(tl.where(beyond, i, BLOCK), 0)
    last = tl.max(tl.where(weight > 0.0, i, -1), 0)
    return tl.where(first < BLOCK, first, last), first < BLOCK


@triton.jit
def draw_tile(
    logits_ptr,
    mask_ptr,
    columns,
    stats_ptr,
    sums,
    total,
    scale,
    u,
    MASK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TILE: tl.constexpr,
):
    """A draw from all allowed columns: the tile from the tiles' sums, the column from the tile."""
    target = u * total
    tile, _ = first_beyond(sums, tl.full((), 0.0, tl.float64), target, BLOCK_T)
    t = tl.arange(0, BLOCK_T)
    before = tl.sum(tl.where(t < tile, sums, 0.0), 0)
    mine = tl.sum(tl.where(t == tile, sums, 0.0), 0)
    high = tl.load(stats_ptr + tile * 5 + 3)
    column = tile * TILE + tl.arange(0, TILE)
    x, _, live = load_logits(logits_ptr, mask_ptr, column, columns, MASK)
    live = live & (x > float("-inf"))
    weight = tl.where(live, tl.exp2(log2_weight(x, high, scale)), 0.0).to(tl.float64)
    part = (target - before) / mine * tl.sum(weight, 0)
    index, _ = first_beyond(weight, tl.full((), 0.0, tl.float64), part, TILE)
    return tile * TILE + index


@triton.jit(do_not_specialize=["seed", "top_k"])
def sample_kernel(
    logits_ptr,
    mask_ptr,
    seed_ptr,
    path_ptr,
    position_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed,
    temperature: tl.float64,
    top_k,
    top_p: tl.float64,
    min_p: tl.float64,
    logits_stride,
    mask_stride,
    seed_stride,
    path_stride,
    position_stride,
    temperature_stride,
    top_k_stride,
    top_p_stride,
    min_p_stride,
    scanned_stride,
    columns,
    tiles,
    topk,
    stats_ptr,
    values_ptr,
    columns_ptr,
    counts_ptr,
    allowed_values_ptr,
    allowed_columns_ptr,
    allowed_counts_ptr,
    chosen_ptr,
    undone_ptr,
    tokens_ptr,
    logprobs_ptr,
    processed_ptr,
    kept_mass_ptr,
    entropy_ptr,
    valid_ptr,
    topk_logprobs_ptr,
    topk_indices_ptr,
    MASK: tl.constexpr,
    PER_ROW: tl.constexpr,
    FILTERS: tl.constexpr,
    WHOLE: tl.constexpr,
    K: tl.constexpr,
    CAP: tl.constexpr,
    ENOUGH: tl.constexpr,
    CAP_ALLOWED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if WHOLE:
        if tl.load(undone_ptr + row) == 0:
            return
    scanned = row * scanned_stride
    logits_ptr += row * logits_stride
    mask_ptr += row * mask_stride
    t = tl.full((), temperature, tl.float64)
    p = tl.full((), top_p, tl.float64)
    least = tl.full((), min_p, tl.float64)
    best = tl.full((), top_k, tl.int64)
    key = tl.full((), seed, tl.int64)
    if PER_ROW:
        t = tl.load(temperature_ptr + row * temperature_stride).to(tl.float64)
        p = tl.load(top_p_ptr + row * top_p_stride).to(tl.float64)
        least = tl.load(min_p_ptr + row * min_p_stride).to(tl.float64)
        best = tl.load(top_k_ptr + row * top_k_stride).to(tl.int64)
        key = tl.load(seed_ptr + row * seed_stride).to(tl.int64)
    best = tl.where(t == 0.0, 1, tl.where((best < 0) | (best >= columns), 0, best))
    path = tl.load(path_ptr + row * path_stride)
    u = uniform(key, path, tl.load(position_ptr + row * position_stride))
    scale = scale_of(t)
    stats_ptr += scanned * tiles * 5
    row_largest, row_all, moment = row_sums(stats_ptr, tiles, scale, 0, BLOCK_T)
    largest, sums, _ = row_sums(stats_ptr, tiles, scale, 3, BLOCK_T)
    fine = is_valid(row_largest)
    valid = fine & (largest > float("-inf"))
    row_total = tl.where(fine, tl.sum(row_all, 0), 1.0)
    total = tl.where(valid, tl.sum(sums, 0), 1.0)
    row_largest = tl.where(fine, row_largest, 0.0)
    largest = tl.where(valid, largest, 0.0)
    log_total = tl.log(row_total)
    if WHOLE == 0:
        entropy = tl.where(fine, row_entropy(row_total, moment), 0.0)
        tl.store(entropy_ptr + row, entropy.to(tl.float32))
        tl.store(valid_ptr + row, valid)
        if K > 0:
            write_topk(
                fine,
                topk,
                tiles,
                row_largest,
                scale,
                log_total,
                values_ptr + scanned * tiles * CAP,
                columns_ptr + scanned * tiles * CAP,
                counts_ptr + scanned * tiles * 2,
                chosen_ptr + row * 2 * K,
                topk_logprobs_ptr + row * topk,
                topk_indices_ptr + row * topk,
                K,
                CAP,
                BLOCK,
                BLOCK_I,
            )
    token = tl.full((), -1, tl.int64)
    mass = total
    done = tl.full((), True, tl.int1)
    plain = (best == 0) & (p >= 1.0) & (least <= 0.0)
    if valid:
        if plain:
            token = draw_tile(
                logits_ptr, mask_ptr, columns, stats_ptr, sums, total, scale, u, MASK, BLOCK_T, TILE
            )
        elif FILTERS:
            at = scanned * tiles
            values = allowed_values_ptr + at * CAP_ALLOWED
            counts = allowed_counts_ptr + at * 2
            end = columns if WHOLE else tiles * CAP_ALLOWED
            outside = tl.full((), NO_KEY, tl.int32)
            if WHOLE == 0:
                tile = tl.arange(0, BLOCK_T)
                worst = tl.load(counts + tile * 2 + 1, mask=tile < tiles, other=NO_KEY)
                outside = tl.max(worst, 0)
            source = (logits_ptr, mask_ptr, values, counts, largest, scale)
            done, token, mass = draw_filtered(
                end,
                source,
                largest,
                scale,
                total,
                best,
                p,
                least,
                u,
                outside,
                ENOUGH,
                MASK,
                WHOLE,
                CAP_ALLOWED,
                BLOCK,
            )
            if (WHOLE == 0) & (token >= 0):
                token = tl.load(allowed_columns_ptr + at * CAP_ALLOWED + token).to(tl.int64)
    if FILTERS & (WHOLE == 0):
        tl.store(undone_ptr + row, (done == 0).to(tl.int8))
    if done:
        x = tl.load(logits_ptr + token, mask=token >= 0, other=0.0).to(tl.float32)
        logprob = log_weight(x, row_largest, scale) - log_total
        log_kept = log_weight(largest, row_largest, scale) + tl.log(mass) - log_total
        unfiltered = (
            plain if MASK == 0 else (plain & (total == row_total) & (largest == row_largest))
        )
        log_kept = tl.where(unfiltered, 0.0, tl.minimum(log_kept, 0.0))
        nothing = float("-inf")
        tl.store(tokens_ptr + row, token)
        tl.store(logprobs_ptr + row, tl.where(valid, logprob, nothing).to(tl.float32))
        tl.store(processed_ptr + row, tl.where(valid, logprob - log_kept, nothing).to(tl.float32))
        tl.store(kept_mass_ptr + row, tl.where(valid, log_kept, nothing).to(tl.float32))


Number = int | float | torch.Tensor


def launch(
    logits: torch.Tensor,
    seed: Number,
    path_ids: torch.Tensor,
    positions: torch.Tensor,
    temperature: Number = 1.0,
    top_k: Number = 0,
    top_p: Number = 1.0,
    min_p: Number = 0.0,
    mask: torch.Tensor | None = None,
    topk: int = 0,
) -> tuple[torch.Tensor, ...]:
    rows, columns = logits.shape
    device = logits.device
    statistics = [torch.empty(rows, dtype=torch.float32, device=device) for _ in range(4)]
    out = (
        torch.empty(rows, dtype=torch.int64, device=device),
        *statistics,
        torch.empty(rows, dtype=torch.bool, device=device),
        torch.empty(rows, topk, dtype=torch.float32, device=device),
        torch.empty(rows, topk, dtype=torch.int64, device=device),
    )
    if rows == 0:
        return out
    parameters = (seed, temperature, top_k, top_p, min_p)
    per_row = isinstance(seed, torch.Tensor)
    filters, short = True, 0  # short: the top_k of all rows, where one is known to be small
    if not per_row:
        short = 1 if temperature == 0 else top_k
        filters = 0 < short < columns or top_p < 1 or min_p > 0
        short = short if 0 < short <= min(columns, rows_of.MAX_K) else 0
    # Rows that are one row are scanned once.
    same = logits.stride(0) == 0 and not per_row and (mask is None or mask.stride(0) == 0)
    scanned, tiles = 1 if same else rows, triton.cdiv(columns, rows_of.TILE)

    raw, allowed = rows_of.candidates(topk), (0, 0)
    if filters:
        allowed = rows_of.candidates(short or LEAST_CANDIDATES)
    if mask is None:
        raw, allowed = max(raw, allowed), (0, 0)
    with torch.cuda.device_of(logits):
        stats, *lists = rows_of.scan(logits, scanned, temperature, mask, raw, allowed)
        behind = scanned * tiles
        enough, cap = allowed if mask is not None else raw
        starts = (0, 0, 0) if mask is None else (behind * raw[1], behind * raw[1], behind * 2)
        chosen_k = rows_of.candidates(topk)[0]
        chosen = torch.empty(rows * 2 * chosen_k, dtype=torch.int32, device=device)
        undone = torch.empty(rows, dtype=torch.int8, device=device)
        for whole in (False, True):
            if whole and (not filters or short):
                break  # the candidates are known to be enough
            slots = columns if whole else tiles * max(raw[1], cap)
            sample_kernel[(rows,)](
                logits,
                logits if mask is None else mask,
                seed if per_row else logits,
                path_ids,
                positions,
                *(p if per_row else logits for p in parameters[1:]),
                *((0, 1.0, 0, 1.0, 0.0) if per_row else parameters),
                logits.stride(0),
                0 if mask is None else mask.stride(0),
                seed.stride(0) if per_row else 0,
                path_ids.stride(0),
                positions.stride(0),
                *(p.stride(0) if per_row else 0 for p in parameters[1:]),
                0 if same else 1,
                columns,
                tiles,
                topk,
                stats,
                *lists,
                *(part[start:] for part, start in zip(lists, starts, strict=True)),
                chosen,
                undone,
                *out,
                mask is not None,
                per_row,
                filters,
                whole,
                chosen_k,
                raw[1],
                enough,
                cap,
                max(16, min(4096, triton.next_power_of_2(slots))),
                min(16, 8192 // max(chosen_k, 1)),
                triton.next_power_of_2(tiles),
                rows_of.TILE,
                num_warps=8,
                enable_fp_fusion=False,
            )
    return out
