"""topk_score: bound by one read of the logits, which the first kernel does; the second, a program a row,
merges what the tiles found."""

import torch
import triton
import triton.language as tl

from . import logits as rows_of
from .logits import is_valid, row_entropy, row_sums, scale_of, write_topk


@triton.jit
def topk_score_kernel(
    stats_ptr,
    values_ptr,
    columns_ptr,
    counts_ptr,
    chosen_ptr,
    temperature: tl.float64,
    k,
    tiles,
    logprobs_ptr,
    indices_ptr,
    logsumexp_ptr,
    entropy_ptr,
    K: tl.constexpr,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scale = scale_of(tl.full((), temperature, tl.float64))
    largest, sums, moment = row_sums(stats_ptr + row * tiles * 5, tiles, scale, 0, BLOCK_T)
    valid = is_valid(largest)
    total = tl.where(valid, tl.sum(sums, 0), 1.0)
    log_total = tl.log(total)
    largest = tl.where(valid, largest, 0.0)
    lse = log_of(largest, scale) + log_total
    tl.store(logsumexp_ptr + row, tl.where(valid, lse, float("-inf")).to(tl.float32))
    tl.store(entropy_ptr + row, tl.where(valid, row_entropy(total, moment), 0.0).to(tl.float32))
    write_topk(
        valid,
        k,
        tiles,
        largest,
        scale,
        log_total,
        values_ptr + row * tiles * CAP,
        columns_ptr + row * tiles * CAP,
        counts_ptr + row * tiles * 2,
        chosen_ptr + row * 2 * K,
        logprobs_ptr + row * k,
        indices_ptr + row * k,
        K,
        CAP,
        BLOCK,
        BLOCK_I,
    )


@triton.jit
def log_of(largest, scale):
    """largest / temperature."""
    return largest.to(tl.float64) * (scale * 0.6931471805599453)


def launch(
    logits: torch.Tensor, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = logits.shape
    device = logits.device
    logprobs = torch.empty(rows, k, dtype=torch.float32, device=device)
    indices = torch.empty(rows, k, dtype=torch.int64, device=device)
    logsumexp = torch.empty(rows, dtype=torch.float32, device=device)
    entropy = torch.empty_like(logsumexp)
    if rows:
        least, most = rows_of.candidates(k)
        with torch.cuda.device_of(logits):
            found = rows_of.scan(logits, rows, temperature, None, (least, most), (0, 0))
            finish(found, k, temperature, columns, (logprobs, indices, logsumexp, entropy))
    return logprobs, indices, logsumexp, entropy


def finish(
    found: tuple[torch.Tensor, ...],
    k: int,
    temperature: float,
    columns: int,
    out: tuple[torch.Tensor, ...],
) -> None:
    """The second kernel, on what the first one left in `found`."""
    rows = out[2].shape[0]
    least, most = rows_of.candidates(k)
    tiles = triton.cdiv(columns, rows_of.TILE)
    chosen = torch.empty(rows * 2 * least, dtype=torch.int32, device=out[0].device)
    topk_score_kernel[(rows,)](
        *found,
        chosen,
        temperature,
        k,
        tiles,
        *out,
        least,
        most,
        min(2048, triton.next_power_of_2(tiles * most)),
        min(16, 8192 // least),
        triton.next_power_of_2(tiles),
        num_warps=8,
        enable_fp_fusion=False,
    )
