"""sample: bound by one read of the logits, which the first kernel does (logits.py). The second, a program a
row, draws from the tiles' sums where nothing filters. Else it sorts the best columns, of which the filters
keep a run; only where that may go on beyond them, all of the row is read again."""

import torch
import triton
import triton.language as tl

from .common import halfway, order_key, uniform
from .logits import (
    BLOCK,
    LEAST_KEY,
    MAX_K,
    TILE,
    Layout,
    choose,
    column_of,
    is_valid,
    load_keys,
    load_logits,
    log2_weight,
    log_sum,
    log_weight,
    room_for,
    row_entropy,
    row_sums,
    scale_of,
    scan,
    weight_of,
    write_topk,
)

SORTED = 512  # columns of a row, where top_k does not say how many are enough


@triton.jit
def share_of(weight, share):
    """Of a weight a share below 1, less than it."""
    return tl.minimum((weight.to(tl.float64) * share).to(tl.int64), weight - 1)


@triton.jit
def first_above(weights, target):
    """The first index at which the running sum is above the target."""
    return tl.sum((tl.cumsum(weights, 0) <= target).to(tl.int32), 0)


@triton.jit
def draw_unfiltered(
    logits_ptr,
    mask_ptr,
    columns,
    stats_ptr,
    weights,
    total,
    scale,
    u,
    MASK: tl.constexpr,
    TILE: tl.constexpr,
):
    """A draw from all allowed columns: the tile from the tiles' weights, the column from the tile's."""
    target = share_of(total, u)
    tile = first_above(weights, target)
    t = tl.arange(0, weights.shape[0])
    before = tl.sum(tl.where(t < tile, weights, 0), 0)
    mine = tl.sum(tl.where(t == tile, weights, 0), 0)
    high = tl.load(stats_ptr + tile * 5 + 3)
    column = tile * TILE + tl.arange(0, TILE)
    x, _, allowed = load_logits(logits_ptr, mask_ptr, column, columns, MASK)
    x = tl.where(allowed, x, float("-inf"))
    weights = (tl.exp2(log2_weight(x, high, scale)) * 2.0**50).to(tl.int64)
    share = (target - before).to(tl.float64) / mine.to(tl.float64)
    return (tile * TILE + first_above(weights, share_of(tl.sum(weights, 0), share))).to(tl.int64)


@triton.jit
def enough_of(top_p, weight):
    """What the best columns have to weigh; more than all do where top_p is off."""
    enough = tl.maximum(tl.ceil(top_p * weight.to(tl.float64)).to(tl.int64), 1)
    return tl.where(top_p < 1.0, enough, 0x7FFFFFFFFFFFFFFF)


@triton.jit
def draw_filtered(
    keys_ptr,
    groups,
    list_ptr,
    source,
    largest,
    scale,
    total,
    top_k,
    top_p,
    min_p,
    u,
    most,
    ONE: tl.constexpr,
    MASK: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    ROOM: tl.constexpr,
):
    """A draw from what the filters keep, and what that weighs. `most` is how many columns may be sorted."""
    floor: tl.constexpr = LEAST_KEY + 1  # nothing at -inf is kept
    everything = tl.full((), floor, tl.int64) << 32
    k = tl.where((top_k > 0) & (top_k <= most), top_k, most).to(tl.int32)
    keys, bound = choose(k, floor, source, keys_ptr, groups, list_ptr, MASK, GROUP, GROUPS, ROOM)
    best = tl.sort(keys, 0, descending=True)
    weight = weight_of(best, largest, scale, ONE)
    least = tl.maximum(tl.ceil(min_p * ONE).to(tl.int64), 1)
    covered = bound == everything
    enough = enough_of(top_p, total)
    if top_k > 0:
        covered |= top_k <= k
        weight = tl.where(tl.arange(0, ROOM) < top_k, weight, 0)
        enough = enough_of(top_p, tl.sum(weight, 0))
    else:
        covered |= (min_p > 0.0) & (weight_of(bound, largest, scale, ONE) < least)
        covered |= tl.sum(weight, 0) >= enough
    if covered:
        keep = (weight >= least) & (tl.cumsum(weight, 0) - weight < enough)
        bound = tl.min(tl.where(keep, best, 0x7FFFFFFFFFFFFFFF), 0)
        weight = tl.where(keys >= bound, weight_of(keys, largest, scale, ONE), 0)
        mass = tl.sum(weight, 0)
        index = first_above(weight, share_of(mass, u))
        token = column_of(tl.sum(tl.where(tl.arange(0, ROOM) == index, keys, 0), 0))
    else:
        token, mass = draw_of_row(
            everything, source, largest, scale, total, top_k, top_p, least, u, ONE, MASK, GROUP
        )
    return token, mass


@triton.jit
def draw_of_row(
    bound,
    source,
    largest,
    scale,
    total,
    top_k,
    top_p,
    least,
    u,
    ONE: tl.constexpr,
    MASK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """As draw_filtered, of any number of columns, by bisection; `total` is what all of them weigh."""
    columns = source[3]
    k = top_k
    enough = tl.where(k > 0, 0, enough_of(top_p, total))
    while (k > 0) | (enough > 0):
        # Looks for the highest bound which k columns reach, that weigh enough.
        high = (order_key(largest).to(tl.int64) + 1) << 32
        count = columns
        above = 0  # how many have keys above `high`
        while (bound < high) & (count - above > 1):
            middle = halfway(bound, high)
            reached = 0
            weight = tl.full((), 0, tl.int64)
            for first in range(0, columns, BLOCK):
                key = load_keys(first, -1, *source, MASK, GROUP)
                take = key >= middle
                reached += tl.sum(take.to(tl.int32), 0)
                weights = weight_of(key, largest, scale, ONE)
                weight += tl.sum(tl.where(take, weights, 0), 0)
            if (reached >= k) & (weight >= enough):
                bound = middle
                count = reached
                total = weight
            else:
                high = middle - 1
                above = reached
        enough = tl.where((k > 0) & (top_p < 1.0), enough_of(top_p, total), 0)
        k = tl.zeros_like(k)
    mass = tl.full((), 0, tl.int64)
    for first in range(0, columns, BLOCK):
        key = load_keys(first, -1, *source, MASK, GROUP)
        weights = weight_of(key, largest, scale, ONE)
        mass += tl.sum(tl.where((key >= bound) & (weights >= least), weights, 0), 0)
    left = share_of(mass, u)
    token = tl.full((), -1, tl.int64)
    for first in range(0, columns, BLOCK):
        key = load_keys(first, -1, *source, MASK, GROUP)
        weights = weight_of(key, largest, scale, ONE)
        weights = tl.where((key >= bound) & (weights >= least), weights, 0)
        here = tl.sum(weights, 0)
        if (left >= 0) & (left < here):
            token = tl.full((), first, tl.int64) + first_above(weights, left)
        left -= here
    return token, mass


@triton.jit(
    do_not_specialize=[
        "seed_ptr",
        "path_ptr",
        "position_ptr",
        "temperature_ptr",
        "top_k_ptr",
        "top_p_ptr",
        "min_p_ptr",
        "seed",
        "top_k",
        "logits_stride",
        "mask_stride",
        "seed_stride",
        "path_stride",
        "position_stride",
        "temperature_stride",
        "top_k_stride",
        "top_p_stride",
        "min_p_stride",
        "scanned_stride",
        "columns",
        "tiles",
        "topk",
        "most",
    ]
)
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
    seed: tl.int64,
    temperature: tl.float64,
    top_k: tl.int64,
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
    most,
    stats_ptr,
    keys_ptr,
    allowed_keys_ptr,
    groups_ptr,
    list_ptr,
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
    ONE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    TOPK_ROOM: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
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
    best = tl.where(t == 0.0, 1, best)
    best = tl.where((best < 0) | (best >= columns), 0, best)
    path = tl.load(path_ptr + row * path_stride)
    u = uniform(key, path, tl.load(position_ptr + row * position_stride))
    scale = scale_of(t)
    stats_ptr += scanned * tiles * 5
    row_largest, _, row_total, moment = row_sums(stats_ptr, tiles, scale, 0, ONE, BLOCK_T)
    largest, weights, total, _ = row_sums(stats_ptr, tiles, scale, 3, ONE, BLOCK_T)
    fine = is_valid(row_largest)
    valid = fine & (largest > float("-inf"))
    row_total = tl.where(fine, row_total, 1)
    row_largest = tl.where(fine, row_largest, 0.0)
    largest = tl.where(valid, largest, 0.0)
    log_total = log_sum(row_total, ONE)
    entropy = tl.where(fine, row_entropy(row_total, moment, ONE), 0.0)
    tl.store(entropy_ptr + row, entropy.to(tl.float32))
    tl.store(valid_ptr + row, valid)
    groups = tiles * (TILE // GROUP)
    keys_at = scanned * groups
    list_ptr += row * max(ROOM, TOPK_ROOM)
    groups_ptr += row * max(ROOM, TOPK_ROOM)
    source = (logits_ptr, mask_ptr, groups_ptr, columns)
    if TOPK_ROOM > 0:
        write_topk(
            fine,
            topk,
            row_largest,
            scale,
            log_total,
            source,
            keys_ptr + keys_at,
            groups,
            list_ptr,
            topk_logprobs_ptr + row * topk,
            topk_indices_ptr + row * topk,
            GROUP,
            GROUPS,
            TOPK_ROOM,
        )
    token = tl.full((), -1, tl.int64)
    mass = tl.where(valid, total, 1)
    plain = (best == 0) & (p >= 1.0) & (least <= 0.0)
    if valid:
        if plain:
            token = draw_unfiltered(
                logits_ptr, mask_ptr, columns, stats_ptr, weights, total, scale, u, MASK, TILE
            )
        elif FILTERS:
            token, mass = draw_filtered(
                (allowed_keys_ptr if MASK else keys_ptr) + keys_at,
                groups,
                list_ptr,
                source,
                largest,
                scale,
                total,
                best,
                p,
                least,
                u,
                most,
                ONE,
                MASK,
                GROUP,
                GROUPS,
                ROOM,
            )
    x = tl.load(logits_ptr + token, mask=token >= 0, other=0.0).to(tl.float32)
    logprob = log_weight(x, row_largest, scale) - log_total
    log_kept = log_weight(largest, row_largest, scale) + log_sum(mass, ONE) - log_total
    unfiltered = plain if MASK == 0 else plain & (total == row_total) & (largest == row_largest)
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
    parameters = (seed, temperature, top_k, top_p, min_p)
    per_row = isinstance(seed, torch.Tensor)
    filters, most = True, SORTED
    if not per_row:
        k = 1 if temperature == 0 else top_k
        filters = 0 < k < columns or top_p < 1 or min_p > 0
        most = k if 0 < k <= MAX_K else SORTED
    most = min(most, columns) if filters else 0
    # Rows that are one row are scanned once.
    same = logits.stride(0) == 0 and not per_row and (mask is None or mask.stride(0) == 0)
    layout = Layout(columns, max(topk, most))
    topk_room, room = (room_for(k) if k else 0 for k in (topk, most))
    if rows == 0:
        return out
    with torch.cuda.device_of(logits):
        found = scan(
            logits,
            1 if same else rows,
            layout,
            temperature,
            mask,
            topk > 0 or (filters and mask is None),
            filters and mask is not None,
        )
        scratch = rows * max(topk_room, room)
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
            layout.tiles,
            topk,
            most,
            *found,
            torch.empty(scratch, dtype=torch.int32, device=device),
            torch.empty(scratch, dtype=torch.int64, device=device),
            *out,
            mask is not None,
            per_row,
            filters,
            layout.one,
            layout.group,
            layout.groups,
            topk_room,
            room,
            layout.block_t,
            TILE,
            num_warps=8,
            maxnreg=255,
            enable_fp_fusion=False,
        )
    return out
