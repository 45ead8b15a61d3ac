"""What the two attention ops share. A path's tokens lie on a fixed grid: tiles of TILE tokens anchored at
position 0, chunks of CHUNK tokens. A program takes up to ROWS query rows through tiles of one chunk, in
order, and leaves a state (maximum, sum, weighted values); a second kernel merges a path's chunks
in order. Every tile goes through the same product of ROWS x TILE whoever shares it, and a row's numbers in
it depend on that row alone, so its bits do not tell who else was there.

Rows that do not see a tile weigh it 0, which leaves their values as they are unless the tile holds an
infinity or a NaN. To keep those out costs registers that the product needs, so a program goes through its
tiles without care, and again with care where it finds that a value is not finite."""

import torch
import triton
import triton.language as tl

TILE = 64
CHUNK = 512
ROWS = 64  # what a product of tensor cores has at the least
ROWS_FLOAT32 = 8  # of products on ordinary cores, from registers
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(x):
    """By its series to x^11 below 0.4, where the quotient would cancel. Error about 2e-7 of the result."""
    square = x * x
    p = square * -0.008863235529902197 + 0.021869488536155203
    p = p * square - 0.05396825396825397
    p = p * square + 0.13333333333333333
    p = p * square - 0.3333333333333333
    small = x + x * square * p
    e = tl.exp2(tl.abs(x) * -2.8853900817779268)
    large = (1.0 - e) / (1.0 + e)
    large = tl.where(x < 0.0, -large, large)
    return tl.where(tl.abs(x) < 0.4, small, large)


@triton.jit
def attend(
    state,
    q,
    k_at,
    v_at,
    live,
    in_tile,
    since,
    d,
    scale,
    softcap,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CAREFUL: tl.constexpr,
):
    """Takes the rows through one tile. Rows that are not live keep their bits; tokens not in_tile are not
    read. A live row i sees every token that is, with WINDOW those of them from since[i] on. Not CAREFUL:
    a value that is not finite may leave NaN in any row."""
    high, total, values = state
    inside = in_tile[:, None] & (d < D)[None, :]
    k = tl.load(k_at, mask=inside, other=0.0)
    seen = live[:, None] & in_tile[None, :]
    if WINDOW:
        token = tl.arange(0, in_tile.shape[0])
        seen = seen & (token[None, :] >= since[:, None])
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if SOFTCAP:
        scores = tanh(scores * (scale / softcap)) * (softcap * LOG2E)
    else:
        scores = scores * (scale * LOG2E)
    scores = tl.where(seen, scores, float("-inf"))
    now = tl.maximum(high, tl.max(scores, 1))
    # Nothing seen yet has the maximum -inf, which must not be subtracted from itself.
    safe = tl.where(now == float("-inf"), 0.0, now)
    ratio = tl.exp2(high - safe)
    p = tl.exp2(scores - safe[:, None])
    total = total * ratio + tl.sum(p, 1)
    if WINDOW and CAREFUL:
        # An infinite or NaN value must not reach a row that does not see it, even as 0 * inf. Of one that
        # does the whole head becomes NaN.
        finite = tl.sum(tl.load(v_at, mask=inside, other=0.0).to(tl.float32) * 0.0, 1) == 0.0
        inside = inside & finite[:, None]
        spoilt = live & (tl.max(tl.where(finite, -1, token), 0) >= tl.maximum(since, 0))
        ratio = tl.where(spoilt, float("nan"), ratio)
    v = tl.load(v_at, mask=inside, other=0.0)
    more = tl.dot(p.to(v.dtype), v, input_precision="ieee")
    if CAREFUL:
        # Another path's values must not reach a row even as 0 * inf.
        values = tl.where(live[:, None], values * ratio[:, None] + more, values)
    else:
        values = values * ratio[:, None] + more
    return now, total, values


@triton.jit
def is_spoilt(state):
    """Whether a value is not finite, so that the tiles have to be gone through with care."""
    return tl.max((state[2] * 0.0 != 0.0).to(tl.int32)) > 0


@triton.jit
def empty_state(ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    high = tl.full((ROWS,), float("-inf"), tl.float32)
    return high, tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, BLOCK_D), tl.float32)


@triton.jit
def store_state(state, at, live, d, high_ptr, total_ptr, values_ptr, D: tl.constexpr):
    high, total, values = state
    tl.store(high_ptr + at, high, mask=live)
    tl.store(total_ptr + at, total, mask=live)
    tl.store(
        values_ptr + at[:, None] * D + d[None, :], values, mask=live[:, None] & (d < D)[None, :]
    )


@triton.jit
def merge_chunks_kernel(
    high_ptr,
    total_ptr,
    values_ptr,
    paths_ptr,
    lengths_ptr,
    firsts_ptr,
    path_stride,
    out_ptr,
    lse_ptr,
    heads,
    D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Path paths[i] has ceil(lengths[i] / CHUNK) states from firsts[i] on, each of all heads."""
    i = tl.program_id(0).to(tl.int64) * path_stride
    path = tl.load(paths_ptr + i).to(tl.int64)
    chunks = (tl.load(lengths_ptr + i) + CHUNK - 1) // CHUNK
    first = tl.load(firsts_ptr + i).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    live = head < heads
    inside = live[:, None] & (d < D)[None, :]
    highest = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    for start in range(0, chunks, BLOCK_C):
        chunk = start + tl.arange(0, BLOCK_C)
        at = (first + chunk)[:, None] * heads + head[None, :]
        there = (chunk < chunks)[:, None] & live[None, :]
        highs = tl.load(high_ptr + at, mask=there, other=float("-inf"))
        highest = tl.maximum(highest, tl.max(highs, 0))
    safe = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.zeros((BLOCK_H,), tl.float32)
    values = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    for chunk in tl.range(0, chunks, num_stages=4):
        at = (first + chunk) * heads + head
        weight = tl.exp2(tl.load(high_ptr + at, mask=live, other=float("-inf")) - safe)
        total += weight * tl.load(total_ptr + at, mask=live, other=0.0)
        part = tl.load(values_ptr + at[:, None] * D + d[None, :], mask=inside, other=0.0)
        values += tl.where(weight > 0.0, weight, 0.0)[:, None] * part
    # Of NaN a device's maximum is -inf too, but the sum is NaN.
    nothing = (highest == float("-inf")) & (total == 0.0)
    divisor = tl.where(nothing, 1.0, total)
    out = values / divisor[:, None]
    to = path * heads + head
    tl.store(out_ptr + to[:, None] * D + d[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)
    lse = (highest + tl.log2(divisor)) / LOG2E
    tl.store(lse_ptr + to, tl.where(nothing, float("-inf"), lse), mask=live)


class States:
    """The partial results of `count` (path, chunk) pairs."""

    def __init__(self, count: int, q: torch.Tensor) -> None:
        heads, d = q.shape[-2:]
        make = {"dtype": torch.float32, "device": q.device}
        self.high, self.total = (
            torch.empty(count * heads, **make),
            torch.empty(count * heads, **make),
        )
        self.values = torch.empty(count * heads * d, **make)

    def merge(
        self,
        paths: torch.Tensor,
        lengths: torch.Tensor,
        firsts: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:
        heads, d = out.shape[-2:]
        block_d = triton.next_power_of_2(d)
        block_h = min(triton.next_power_of_2(heads), max(1, 512 // block_d))
        merge_chunks_kernel[(paths.shape[0], triton.cdiv(heads, block_h))](
            self.high,
            self.total,
            self.values,
            paths,
            lengths,
            firsts,
            paths.stride(0),
            out,
            lse,
            heads,
            d,
            block_h,
            block_d,
            64,
            CHUNK,
            enable_fp_fusion=True,
        )


def rows(dtype: torch.dtype) -> int:
    """Query rows of a program. A KV head with more than that in one path takes several programs."""
    return ROWS_FLOAT32 if dtype is torch.float32 else ROWS


def resources(dtype: torch.dtype, d: int) -> dict[str, int]:
    """Warps and stages: for heads up to 128 such that two programs share a multiprocessor of 228 KB, one
    of which computes while the other waits, each with the loads of a tile under way."""
    if dtype is torch.float32:
        return {"num_warps": 8, "num_stages": 1}
    return {"num_warps": 4, "num_stages": 3} if d <= 128 else {"num_warps": 8, "num_stages": 2}
