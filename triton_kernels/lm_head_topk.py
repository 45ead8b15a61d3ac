"""lm_head_topk: bound by reading the weights once. The product is taken in blocks of fixed shape with H in a
fixed order, so that a row's logits do not depend on the batch; they are kept in float32 for the
scoring kernels, 4 bytes a column beside 2 H of weights."""

from typing import Any

import torch
import triton
import triton.language as tl

from . import sample, topk_score

BLOCK_V = 128
MAX_COLUMNS = 65_535 * BLOCK_V  # programs that a launch may have in its second dimension


@triton.jit(do_not_specialize=["rows"])
def product_kernel(
    hidden_ptr,
    weight_ptr,
    logits_ptr,
    rows,
    columns,
    width,
    hidden_stride,
    weight_stride,
    BLOCK_B: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    # Blocks of rows that share a block of weights are neighbours, so that it is read once.
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = tl.program_id(1).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    h = tl.arange(0, BLOCK_H)
    # Past the end the last one is read again, which costs no mask.
    x_row = hidden_ptr + tl.minimum(row, rows - 1)[:, None] * hidden_stride
    w_row = weight_ptr + tl.minimum(column, columns - 1)[:, None] * weight_stride
    total = tl.zeros((BLOCK_B, BLOCK_V), tl.float32)
    for first in range(0, width, BLOCK_H):
        live = (first + h < width)[None, :]
        x = tl.load(x_row + (first + h)[None, :], mask=live, other=0.0)
        w = tl.load(w_row + (first + h)[None, :], mask=live, other=0.0)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    to = logits_ptr + row[:, None] * columns + column[None, :]
    tl.store(to, total, mask=(row < rows)[:, None] & (column < columns)[None, :])


def product(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows, width = hidden.shape
    columns = weight.shape[0]
    if columns > MAX_COLUMNS:
        raise ValueError(f"weight: got {columns} rows, expected at most {MAX_COLUMNS} with Triton")
    logits = torch.empty(rows, columns, dtype=torch.float32, device=hidden.device)
    if rows == 0:
        return logits
    narrow = hidden.dtype is torch.float32
    block_b, block_h = (16, 32) if narrow else (64, 64)
    with torch.cuda.device_of(hidden):
        product_kernel[(triton.cdiv(rows, block_b), triton.cdiv(columns, BLOCK_V))](
            hidden,
            weight,
            logits,
            rows,
            columns,
            width,
            hidden.stride(0),
            weight.stride(0),
            block_b,
            BLOCK_V,
            block_h,
            num_warps=8,
            num_stages=2 if narrow else 3,
            enable_fp_fusion=True,
        )
    return logits


def launch(
    hidden: torch.Tensor, weight: torch.Tensor, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, ...]:
    return topk_score.launch(product(hidden, weight), k, temperature)


def launch_draw(
    hidden: torch.Tensor, weight: torch.Tensor, *parameters: Any
) -> tuple[torch.Tensor, ...]:
    """`parameters` are those of `sample` after the logits."""
    return sample.launch(product(hidden, weight), *parameters)
