"""topk_score: bound by one read of the logits, which the first kernel does; the second, a program a row,
sums what it found of the tiles and chooses the best columns."""

import torch
import triton
import triton.language as tl

from .logits import (
    LN2,
    TILE,
    Layout,
    is_valid,
    log_sum,
    room_for,
    row_entropy,
    row_sums,
    scale_of,
    scan,
    write_topk,
)


@triton.jit(do_not_specialize=["logits_stride", "columns", "tiles", "k"])
def topk_score_kernel(
    logits_ptr,
    stats_ptr,
    keys_ptr,
    groups_ptr,
    list_ptr,
    temperature: tl.float64,
    logits_stride,
    columns,
    tiles,
    k,
    logprobs_ptr,
    indices_ptr,
    logsumexp_ptr,
    entropy_ptr,
    ONE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scale = scale_of(tl.full((), temperature, tl.float64))
    largest, _, total, moment = row_sums(stats_ptr + row * tiles * 5, tiles, scale, 0, ONE, BLOCK_T)
    valid = is_valid(largest)
    total = tl.where(valid, total, 1)
    log_total = log_sum(total, ONE)
    largest = tl.where(valid, largest, 0.0)
    lse = largest.to(tl.float64) * (scale * LN2) + log_total
    entropy = row_entropy(total, moment, ONE)
    tl.store(logsumexp_ptr + row, tl.where(valid, lse, float("-inf")).to(tl.float32))
    tl.store(entropy_ptr + row, tl.where(valid, entropy, 0.0).to(tl.float32))
    at = logits_ptr + row * logits_stride
    groups = tiles * (TILE // GROUP)
    write_topk(
        valid,
        k,
        largest,
        scale,
        log_total,
        (at, at, groups_ptr + row * ROOM, columns),
        keys_ptr + row * groups,
        groups,
        list_ptr + row * ROOM,
        logprobs_ptr + row * k,
        indices_ptr + row * k,
        GROUP,
        GROUPS,
        ROOM,
    )


def launch(
    logits: torch.Tensor, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = logits.shape
    device = logits.device
    logprobs = torch.empty(rows, k, dtype=torch.float32, device=device)
    indices = torch.empty(rows, k, dtype=torch.int64, device=device)
    logsumexp = torch.empty(rows, dtype=torch.float32, device=device)
    entropy = torch.empty_like(logsumexp)
    layout, room = Layout(columns, k), room_for(k)
    if rows:
        with torch.cuda.device_of(logits):
            stats, keys, _ = scan(logits, rows, layout, temperature)
            topk_score_kernel[(rows,)](
                logits,
                stats,
                keys,
                torch.empty(rows, room, dtype=torch.int32, device=device),
                torch.empty(rows, room, dtype=torch.int64, device=device),
                temperature,
                logits.stride(0),
                columns,
                layout.tiles,
                k,
                logprobs,
                indices,
                logsumexp,
                entropy,
                layout.one,
                layout.group,
                layout.groups,
                room,
                layout.block_t,
                TILE,
                num_warps=8,
                maxnreg=255,
                enable_fp_fusion=False,
            )
    return logprobs, indices, logsumexp, entropy
