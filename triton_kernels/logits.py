"""What topk_score, sample and lm_head_topk share: logits go through two kernels, one program a tile of TILE
columns and then one a row. Tiles are fixed by column, so that a row's bits depend on nothing but the row."""

import torch
import triton
import triton.language as tl

from .common import halfway, order_key

TILE = 4096
MAX_K = 1024
NO_KEY = tl.constexpr(-0x80000000)  # below the key of every value
LN2 = tl.constexpr(0.6931471805599453)
# Below this any two unequal logits are further apart than probabilities reach.
LEAST_TEMPERATURE = tl.constexpr(1.5e-250)


@triton.jit
def scale_of(temperature):
    """log2(e) / temperature; a temperature of 0 stands for 1."""
    t = tl.where(temperature == 0, 1.0, tl.maximum(temperature, LEAST_TEMPERATURE))
    return 1.4426950408889634 / t


@triton.jit
def log2_weight(x, reference, scale):
    """(x - reference) * scale in float32, the scale in two parts so that it is not rounded."""
    high = tl.minimum(scale, 3.0e38).to(tl.float32)
    low = (tl.minimum(scale, 3.0e38) - high.to(tl.float64)).to(tl.float32)
    d = x - reference
    y = d * high
    y = tl.where(y > -1e30, y + d * low, y)
    return tl.where(d == 0.0, 0.0, y)


@triton.jit
def load_logits(logits_ptr, mask_ptr, column, columns, MASK: tl.constexpr):
    """Values of a row as float32, and which columns exist and are allowed."""
    live = column < columns
    x = tl.load(logits_ptr + column, mask=live, other=float("-inf")).to(tl.float32)
    allowed = live
    if MASK:
        word = tl.load(mask_ptr + column // 32, mask=live, other=0)
        allowed = live & ((word >> (column % 32)) & 1 != 0)
    return x, live, allowed


@triton.jit
def tile_sums(x, scale):
    """Maximum, sum of 2^(x * scale) and its entropy moment, both relative to the maximum."""
    high = tl.max(x, 0)
    y = log2_weight(x, tl.where(high == float("-inf"), 0.0, high), scale)
    e = tl.exp2(y)
    return high, tl.sum(e, 0), tl.sum(tl.where(e > 0.0, e * y, 0.0), 0)


@triton.jit
def tile_best(
    x,
    column,
    live,
    values_ptr,
    columns_ptr,
    counts_ptr,
    K: tl.constexpr,
    CAP: tl.constexpr,
    TILE: tl.constexpr,
):
    """Stores K to CAP of the best live columns of a tile, all that are above the worst of them, in order
    of index; their number, and the key below which others were left out (NO_KEY: none was)."""
    key = tl.where(live, order_key(x), NO_KEY)
    total = tl.sum(live.to(tl.int32), 0)
    # The least of K disjoint groups' maxima: K columns reach it.
    groups = tl.reshape(key, (K, TILE // K))
    low = tl.min(tl.max(groups, 1), 0)
    high = tl.max(key, 0)
    found = total <= CAP
    if found:
        low = tl.full((), NO_KEY + 1, tl.int32)
    elif low > NO_KEY:
        found = tl.sum((key >= low).to(tl.int32), 0) <= CAP
    while (low < high) & (found == 0):
        middle = halfway(low, high)
        count = tl.sum((key >= middle).to(tl.int32), 0)
        if count >= K:
            low = middle
            found = count <= CAP
        else:
            high = middle - 1
    take = live & (key >= low)
    if found == 0:  # more columns than CAP share the K-th key
        tie = live & (key == low)
        above = take & (key > low)
        need = K - tl.sum(above.to(tl.int32), 0)
        take = above | (tie & (tl.cumsum(tie.to(tl.int32), 0) <= need))
    place = tl.cumsum(take.to(tl.int32), 0) - 1
    tl.store(values_ptr + place, x, mask=take)
    tl.store(columns_ptr + place, column, mask=take)
    count = tl.sum(take.to(tl.int32), 0)
    worst = tl.min(tl.where(take, key, 0x7FFFFFFF), 0)
    tl.store(counts_ptr, count)
    tl.store(counts_ptr + 1, tl.where(count == total, NO_KEY, worst))


@triton.jit
def scan_kernel(
    logits_ptr,
    mask_ptr,
    temperature_ptr,
    temperature: tl.float64,
    logits_stride,
    mask_stride,
    temperature_stride,
    columns,
    tiles,
    stats_ptr,
    values_ptr,
    columns_ptr,
    counts_ptr,
    MASK: tl.constexpr,
    PER_ROW: tl.constexpr,
    K: tl.constexpr,
    CAP: tl.constexpr,
    K_ALLOWED: tl.constexpr,
    CAP_ALLOWED: tl.constexpr,
    TILE: tl.constexpr,
):
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    t = tl.full((), temperature, tl.float64)
    if PER_ROW:
        t = tl.load(temperature_ptr + row * temperature_stride).to(tl.float64)
    scale = scale_of(t)
    column = tile * TILE + tl.arange(0, TILE)
    at = logits_ptr + row * logits_stride
    x, live, allowed = load_logits(at, mask_ptr + row * mask_stride, column, columns, MASK)
    bad = (x != x) | (x == float("inf"))
    x = tl.where(bad, float("-inf"), x)
    high, total, moment = tile_sums(x, scale)
    high = tl.where(tl.sum(bad.to(tl.int32), 0) > 0, float("inf"), high)
    place = row * tiles + tile
    stats_ptr += place * 5
    tl.store(stats_ptr, high)
    tl.store(stats_ptr + 1, total)
    tl.store(stats_ptr + 2, moment)
    if MASK:
        high, total, moment = tile_sums(tl.where(allowed, x, float("-inf")), scale)
    tl.store(stats_ptr + 3, high)
    tl.store(stats_ptr + 4, total)
    if K > 0:
        tile_best(
            x,
            column,
            live,
            values_ptr + place * CAP,
            columns_ptr + place * CAP,
            counts_ptr + place * 2,
            K,
            CAP,
            TILE,
        )
    if K_ALLOWED > 0:
        behind = tl.num_programs(1).to(tl.int64) * tiles
        at = behind * CAP + place * CAP_ALLOWED
        tile_best(
            x,
            column,
            allowed & (x > float("-inf")),
            values_ptr + at,
            columns_ptr + at,
            counts_ptr + (behind + place) * 2,
            K_ALLOWED,
            CAP_ALLOWED,
            TILE,
        )


@triton.jit
def row_sums(stats_ptr, tiles, scale, AT: tl.constexpr, BLOCK_T: tl.constexpr):
    """Of a row: its maximum, each tile's sum and the row's entropy moment relative to it, in float64."""
    tile = tl.arange(0, BLOCK_T)
    live = tile < tiles
    high = tl.load(stats_ptr + tile * 5 + AT, mask=live, other=float("-inf"))
    largest = tl.max(high, 0)
    d = tl.where(high == largest, 0.0, high.to(tl.float64) - largest.to(tl.float64))
    y = tl.where(d == 0.0, 0.0, d * scale)
    weight = tl.where((high > float("-inf")) & (y > -1000.0), tl.exp2(tl.maximum(y, -1000.0)), 0.0)
    sums = tl.load(stats_ptr + tile * 5 + AT + 1, mask=live, other=0.0).to(tl.float64) * weight
    moment = tl.full((), 0.0, tl.float64)
    if AT == 0:
        moments = tl.load(stats_ptr + tile * 5 + 2, mask=live, other=0.0).to(tl.float64) * weight
        moment = tl.sum(moments + tl.where(weight > 0.0, sums * y, 0.0), 0)
    return largest, sums, moment


@triton.jit
def is_valid(largest):
    """False for a row with NaN, +inf or nothing above -inf."""
    return (largest > float("-inf")) & (largest < float("inf"))


@triton.jit
def row_entropy(total, moment):
    return tl.maximum(tl.log(total) - LN2 * moment / total, 0.0)


@triton.jit
def log_weight(x, largest, scale):
    """log of exp(x / temperature) relative to the largest, in float64."""
    d = x.to(tl.float64) - largest.to(tl.float64)
    return tl.where(d == 0.0, 0.0, d * scale * LN2)


@triton.jit
def load_candidates(first, values_ptr, counts_ptr, slots, CAP: tl.constexpr, BLOCK: tl.constexpr):
    slot = first + tl.arange(0, BLOCK)
    count = tl.load(counts_ptr + slot // CAP * 2, mask=slot < slots, other=0)
    live = slot % CAP < count
    x = tl.load(values_ptr + slot, mask=live, other=float("-inf"))
    return slot, x, live


@triton.jit
def write_topk(
    valid,
    k,
    tiles,
    largest,
    scale,
    log_total,
    values_ptr,
    columns_ptr,
    counts_ptr,
    chosen_ptr,
    logprobs_ptr,
    indices_ptr,
    K: tl.constexpr,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """The k best of a row's candidates in order. `chosen` holds 2 K slots, indices among candidates."""
    slots = tiles * CAP
    low = tl.full((), NO_KEY, tl.int32)
    high = tl.full((), NO_KEY, tl.int32)
    total = 0
    for first in range(0, slots, BLOCK):
        slot, x, live = load_candidates(first, values_ptr, counts_ptr, slots, CAP, BLOCK)
        high = tl.maximum(high, tl.max(tl.where(live, order_key(x), NO_KEY), 0))
        total += tl.sum(live.to(tl.int32), 0)
    found = total <= 2 * K
    while (low < high) & (found == 0):
        middle = halfway(low, high)
        count = 0
        for first in range(0, slots, BLOCK):
            slot, x, live = load_candidates(first, values_ptr, counts_ptr, slots, CAP, BLOCK)
            count += tl.sum((live & (order_key(x) >= middle)).to(tl.int32), 0)
        if count >= k:
            low = middle
            found = count <= 2 * K
        else:
            high = middle - 1
    # Of columns with the least key only the first are wanted, and no more than 2 K fit.
    kept = 0
    above = 0
    if found == 0:
        for first in range(0, slots, BLOCK):
            slot, x, live = load_candidates(first, values_ptr, counts_ptr, slots, CAP, BLOCK)
            above += tl.sum((live & (order_key(x) > low)).to(tl.int32), 0)
    need = tl.where(found, total, k - above)
    ties = 0
    for first in range(0, slots, BLOCK):
        slot, x, live = load_candidates(first, values_ptr, counts_ptr, slots, CAP, BLOCK)
        key = order_key(x)
        tie = live & (key == low)
        nth = ties + tl.cumsum(tie.to(tl.int32), 0)
        take = (live & (key > low)) | (tie & (nth <= need))
        tl.store(chosen_ptr + kept + tl.cumsum(take.to(tl.int32), 0) - 1, slot, mask=take)
        kept += tl.sum(take.to(tl.int32), 0)
        ties += tl.sum(tie.to(tl.int32), 0)
    tl.debug_barrier()
    j = tl.arange(0, 2 * K)
    slot_j = tl.load(chosen_ptr + j, mask=j < kept, other=0)
    key_j = order_key(tl.load(values_ptr + slot_j, mask=j < kept, other=float("-inf")))
    for first in range(0, kept, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        slot = tl.load(chosen_ptr + i, mask=i < kept, other=0)
        x = tl.load(values_ptr + slot, mask=i < kept, other=float("-inf"))
        key = order_key(x)
        better = (key_j[None, :] > key[:, None]) | (
            (key_j[None, :] == key[:, None]) & (j[None, :] < i[:, None])
        )
        rank = tl.sum((better & (j < kept)[None, :]).to(tl.int32), 1)
        live = (i < kept) & (rank < k)
        column = tl.load(columns_ptr + slot, mask=live, other=0).to(tl.int64)
        logprob = (log_weight(x, largest, scale) - log_total).to(tl.float32)
        logprob = tl.where(valid & (x > float("-inf")), logprob, float("-inf"))
        tl.store(logprobs_ptr + rank, logprob, mask=live)
        tl.store(indices_ptr + rank, tl.where(valid, column, -1), mask=live)


def candidates(k: int) -> tuple[int, int]:
    """How many candidates a tile gives at least and at most for the best k of a row."""
    if k == 0:
        return 0, 0
    least = max(triton.next_power_of_2(k), 16)
    return least, 2 * least


def scan(
    logits: torch.Tensor,
    rows: int,
    temperature: float | torch.Tensor,
    mask: torch.Tensor | None,
    k: tuple[int, int],
    k_allowed: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launches the first kernel on the first `rows` rows: statistics, candidates' values and columns,
    and their counts. Candidates for k come first, those of allowed columns behind them."""
    columns = logits.shape[1]
    tiles = triton.cdiv(columns, TILE)
    per_row = isinstance(temperature, torch.Tensor)
    device, cap = logits.device, k[1] + k_allowed[1]
    stats = torch.empty(rows * tiles * 5, dtype=torch.float32, device=device)
    values = torch.empty(rows * tiles * cap, dtype=torch.float32, device=device)
    indices = torch.empty(rows * tiles * cap, dtype=torch.int32, device=device)
    counts = torch.empty(rows * tiles * 4, dtype=torch.int32, device=device)
    scan_kernel[(tiles, rows)](
        logits,
        logits if mask is None else mask,
        temperature if per_row else logits,
        1.0 if per_row else temperature,
        logits.stride(0),
        0 if mask is None else mask.stride(0),
        temperature.stride(0) if per_row else 0,
        columns,
        tiles,
        stats,
        values,
        indices,
        counts,
        mask is not None,
        per_row,
        *k,
        *k_allowed,
        TILE,
        num_warps=16,
        enable_fp_fusion=False,
    )
    return stats, values, indices, counts
