"""What topk_score, sample and lm_head_topk share: logits go through two kernels. The first, a program a tile
of TILE columns, leaves the tile's sums and the largest key of each of its groups of columns. The second, a
program a row, looks at the groups that reach a bound which k of them reach, and sorts the columns that do.

Tiles are fixed by column, so that a row's bits depend on nothing but the row. A reduction adds in an order
that follows a load's layout, and this the alignment of the row: only integers are added in that way."""

import torch
import triton
import triton.language as tl

from .common import halfway, order_key, value_of

TILE = 4096
MAX_K = 1024
BLOCK = tl.constexpr(2048)  # columns that the second kernel reads at once
MAX_GROUPS = 8192  # of a row, which a program holds in registers
MAX_COLUMNS = TILE * MAX_GROUPS
NO_KEY = tl.constexpr(-0x80000000)  # below the key of every value
LEAST_KEY = tl.constexpr(-0x7F800001)  # of -inf
NOTHING = tl.constexpr(-0x8000000000000000)  # below the key of every column
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
    """(x - reference) * scale in float32, the scale in two parts so that it is not rounded; at least -200."""
    high = tl.minimum(scale, 3.0e38).to(tl.float32)
    low = (tl.minimum(scale, 3.0e38) - high.to(tl.float64)).to(tl.float32)
    d = x - reference
    # What is -inf, or NaN where infinities of both parts meet, weighs nothing.
    return tl.maximum(d * high + d * low, -200.0)


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
def tile_sum(x, PAIRS: tl.constexpr):
    """The sum of numbers of up to 1: pairs of neighbours in registers, then integers, multiples of 2^-50."""
    for _ in tl.static_range(PAIRS):
        a, b = tl.split(tl.reshape(x, (x.shape[0] // 2, 2)))
        x = a + b
    return (tl.sum((x * 2.0**50).to(tl.int64), 0).to(tl.float64) * 2.0**-50).to(tl.float32)


@triton.jit
def scan_tile(x, scale, keys_ptr, KEYS: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr):
    """Stores the groups' keys; maximum, sum of 2^(x * scale) and its entropy moment relative to it."""
    high = tl.max(x, 0)
    y = log2_weight(x, tl.where(high == float("-inf"), 0.0, high), scale)
    e = tl.exp2(y)
    if KEYS:
        groups: tl.constexpr = x.shape[0] // GROUP
        highs = tl.max(tl.reshape(x, (groups, GROUP)), 1)
        tl.store(keys_ptr + tl.arange(0, groups), order_key(highs))
    return high, tile_sum(e, PAIRS), tile_sum(e * y, PAIRS)


@triton.jit(do_not_specialize=["temperature_stride", "tiles"])
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
    keys_ptr,
    allowed_keys_ptr,
    MASK: tl.constexpr,
    PER_ROW: tl.constexpr,
    KEYS: tl.constexpr,
    ALLOWED_KEYS: tl.constexpr,
    GROUP: tl.constexpr,
    PAIRS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    t = tl.full((), temperature, tl.float64)
    if PER_ROW:
        t = tl.load(temperature_ptr + row * temperature_stride).to(tl.float64)
    scale = scale_of(t)
    column = tile * TILE + tl.arange(0, TILE)
    at = logits_ptr + row * logits_stride
    x, _, allowed = load_logits(at, mask_ptr + row * mask_stride, column, columns, MASK)
    x = tl.where(x < float("inf"), x, float("inf"))  # NaN too: a row with either is refused
    place = row * tiles + tile
    keys_at = place * (TILE // GROUP)
    high, total, moment = scan_tile(x, scale, keys_ptr + keys_at, KEYS, GROUP, PAIRS)
    stats_ptr += place * 5
    tl.store(stats_ptr, high)
    tl.store(stats_ptr + 1, total)
    tl.store(stats_ptr + 2, moment)
    if MASK:
        x = tl.where(allowed, x, float("-inf"))
        to = allowed_keys_ptr + keys_at
        high, total, _ = scan_tile(x, scale, to, ALLOWED_KEYS, GROUP, PAIRS)
    tl.store(stats_ptr + 3, high)
    tl.store(stats_ptr + 4, total)


@triton.jit
def row_sums(stats_ptr, tiles, scale, AT: tl.constexpr, ONE: tl.constexpr, BLOCK_T: tl.constexpr):
    """Of a row: its maximum, the weights of its tiles where that weighs ONE, their sum, and the moment."""
    tile = tl.arange(0, BLOCK_T)
    live = tile < tiles
    high = tl.load(stats_ptr + tile * 5 + AT, mask=live, other=float("-inf"))
    largest = tl.max(high, 0)
    d = tl.where(high == largest, 0.0, high.to(tl.float64) - largest.to(tl.float64))
    y = tl.where(d == 0.0, 0.0, d * scale)
    weight = tl.where((high > float("-inf")) & (y > -1000.0), tl.exp2(tl.maximum(y, -1000.0)), 0.0)
    weight *= ONE
    sums = tl.load(stats_ptr + tile * 5 + AT + 1, mask=live, other=0.0).to(tl.float64) * weight
    moment = tl.full((), 0, tl.int64)
    if AT == 0:
        moments = tl.load(stats_ptr + tile * 5 + 2, mask=live, other=0.0).to(tl.float64) * weight
        moment = tl.sum((moments + tl.where(weight > 0.0, sums * y, 0.0)).to(tl.int64), 0)
    weights = sums.to(tl.int64)
    return largest, weights, tl.sum(weights, 0), moment


@triton.jit
def is_valid(largest):
    """False for a row with NaN, +inf or nothing above -inf."""
    return (largest > float("-inf")) & (largest < float("inf"))


@triton.jit
def log_sum(total, ONE: tl.constexpr):
    return tl.log(total.to(tl.float64) / ONE)


@triton.jit
def row_entropy(total, moment, ONE: tl.constexpr):
    share = moment.to(tl.float64) / total.to(tl.float64)
    return tl.maximum(log_sum(total, ONE) - LN2 * share, 0.0)


@triton.jit
def log_weight(x, largest, scale):
    """log of exp(x / temperature) relative to the largest, in float64."""
    d = x.to(tl.float64) - largest.to(tl.float64)
    return tl.where(d == 0.0, 0.0, d * scale * LN2)


@triton.jit
def column_of(key):
    return 0x7FFFFFFF - (key & 0x7FFFFFFF)


@triton.jit
def load_keys(
    first,
    listed,
    logits_ptr,
    mask_ptr,
    groups_ptr,
    columns,
    MASK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Keys of BLOCK columns, of groups of a list or of the row (listed -1): the value's, and behind it the
    column's, of which the first is the best. NOTHING past the end, -inf where not allowed."""
    column = first + tl.arange(0, BLOCK)
    if listed >= 0:
        inside = column < listed * GROUP
        group = tl.load(groups_ptr + column // GROUP, mask=inside, other=0)
        column = tl.where(inside, group * GROUP + column % GROUP, columns)
    x, live, allowed = load_logits(logits_ptr, mask_ptr, column, columns, MASK)
    x = tl.where(allowed, x, float("-inf"))
    key = (order_key(x).to(tl.int64) << 32) | (0x7FFFFFFF - column)
    return tl.where(live, key, NOTHING)


@triton.jit
def weight_of(key, largest, scale, ONE: tl.constexpr):
    """What a column weighs, as an integer: ONE is the largest."""
    return (tl.exp2(log2_weight(value_of(key >> 32), largest, scale)) * ONE).to(tl.int64)


@triton.jit
def choose(
    k,
    floor,
    source,
    keys_ptr,
    groups,
    list_ptr,
    MASK: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    ROOM: tl.constexpr,
):
    """Keys of all columns that reach a bound, in order of index, and that: k to ROOM columns, or all whose
    values' keys are `floor` or larger."""
    group = tl.arange(0, GROUPS)
    best = tl.load(keys_ptr + group, mask=group < groups, other=NO_KEY)
    low = tl.full((), floor, tl.int32)
    high = tl.max(best, 0)
    top = (high.to(tl.int64) + 1) << 32
    listed = tl.sum((best >= low).to(tl.int32), 0)
    while (low < high) & (listed > k + k // 8 + 32):
        half = halfway(low, high)
        reached = tl.sum((best >= half).to(tl.int32), 0)
        if reached >= k:
            low = half
            listed = reached
        else:
            high = half - 1
    _, _, groups_ptr, columns = source
    held = (best >= low) & (listed <= ROOM)
    tl.store(groups_ptr + tl.cumsum(held.to(tl.int32), 0) - 1, group, mask=held)
    tl.debug_barrier()
    listed = tl.where(listed <= ROOM, listed, -1)
    end = tl.where(listed >= 0, listed * GROUP, columns)
    bound = low.to(tl.int64) << 32
    middle = bound
    count = ROOM + 1
    while count > ROOM:  # mostly once: then no more columns reach the bound than there is room for
        reached = 0
        for first in range(0, end, BLOCK):
            key = load_keys(first, listed, *source, MASK, GROUP)
            take = key >= middle
            place = reached + tl.cumsum(take.to(tl.int32), 0) - 1
            tl.store(list_ptr + place, key, mask=take & (place < ROOM))
            reached += tl.sum(take.to(tl.int32), 0)
        if (reached >= k) | (middle == bound):
            bound = middle
            count = reached
        else:
            top = middle - 1
        middle = halfway(bound, top)
        tl.debug_barrier()
    i = tl.arange(0, ROOM)
    keys = tl.load(list_ptr + i, mask=i < count, other=NOTHING)
    tl.debug_barrier()  # another list may take its place
    return keys, bound


@triton.jit
def write_topk(
    valid,
    k,
    largest,
    scale,
    log_total,
    source,
    keys_ptr,
    groups,
    list_ptr,
    logprobs_ptr,
    indices_ptr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    ROOM: tl.constexpr,
):
    """The k best columns of a row in order."""
    i = tl.arange(0, ROOM)
    logprob = tl.full((ROOM,), float("-inf"), tl.float32)
    column = tl.full((ROOM,), -1, tl.int64)
    if valid:
        keys, _ = choose(
            k, LEAST_KEY, source, keys_ptr, groups, list_ptr, False, GROUP, GROUPS, ROOM
        )
        keys = tl.sort(keys, 0, descending=True)
        logprob = (log_weight(value_of(keys >> 32), largest, scale) - log_total).to(tl.float32)
        column = column_of(keys)
    tl.store(logprobs_ptr + i, logprob, mask=i < k)
    tl.store(indices_ptr + i, column, mask=i < k)


def room_for(k: int) -> int:
    """How many columns are sorted for the best k."""
    return max(triton.next_power_of_2(2 * k), 256)


class Layout:
    """How rows of so many columns are laid out, the best k of which are wanted."""

    def __init__(self, columns: int, k: int) -> None:
        if columns > MAX_COLUMNS:
            raise ValueError(
                f"logits: got {columns} columns, expected at most {MAX_COLUMNS} with Triton"
            )
        self.tiles = triton.cdiv(columns, TILE)
        size = triton.next_power_of_2(columns)
        # Some times as many groups as columns are wanted, or each would hold several of them.
        self.group = max(1, min(32, size // (2 * room_for(k))), size // MAX_GROUPS)
        self.keys = self.tiles * (TILE // self.group)  # a row
        self.block_t = triton.next_power_of_2(self.tiles)
        self.groups = self.block_t * (TILE // self.group)
        # What the largest column weighs, so that those of all tiles have 62 bits.
        self.one = 2.0**62 / (self.block_t * TILE)


def scan(
    logits: torch.Tensor,
    rows: int,
    layout: Layout,
    temperature: float | torch.Tensor,
    mask: torch.Tensor | None = None,
    keys: bool = True,
    allowed_keys: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launches the first kernel on the first `rows` rows: statistics, the groups' keys, and these of allowed
    columns."""
    per_row = isinstance(temperature, torch.Tensor)
    new, device, room = torch.empty, logits.device, rows * layout.keys
    stats = new(rows * layout.tiles * 5, dtype=torch.float32, device=device)
    found = [
        new(room * wanted, dtype=torch.int32, device=device) for wanted in (keys, allowed_keys)
    ]
    scan_kernel[(rows, layout.tiles)](
        logits,
        logits if mask is None else mask,
        temperature if per_row else logits,
        1.0 if per_row else temperature,
        logits.stride(0),
        0 if mask is None else mask.stride(0),
        temperature.stride(0) if per_row else 0,
        logits.shape[1],
        layout.tiles,
        stats,
        *found,
        mask is not None,
        per_row,
        keys,
        allowed_keys,
        layout.group,
        (16 // logits.element_size()).bit_length() - 1,  # what a load of 16 bytes brings a thread
        TILE,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return stats, *found
