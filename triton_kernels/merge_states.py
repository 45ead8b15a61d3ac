"""merge_states: bound by memory, so one program takes a block of whole rows and reads each value once."""

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def merge_states_kernel(
    out_a_ptr,
    lse_a_ptr,
    out_b_ptr,
    lse_b_ptr,
    out_ptr,
    lse_ptr,
    rows,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = row < rows
    lse_a = tl.load(lse_a_ptr + row, mask=live, other=float("-inf"))
    lse_b = tl.load(lse_b_ptr + row, mask=live, other=float("-inf"))
    high = tl.maximum(lse_a, lse_b)
    # Two empty states: subtract 0 instead of -inf, so that both weights are 0 and not NaN.
    shift = tl.where(high == float("-inf"), 0.0, high)
    weight_a, weight_b = tl.exp(lse_a - shift), tl.exp(lse_b - shift)
    total = weight_a + weight_b
    divisor = tl.where(total == 0.0, 1.0, total)
    tl.store(
        lse_ptr + row, tl.where(total == 0.0, float("-inf"), shift + tl.log(divisor)), mask=live
    )
    d = tl.arange(0, BLOCK_D)
    at = row[:, None] * D + d[None, :]
    # What an empty state holds is not read: it may be anything, NaN too.
    in_a = live[:, None] & (d < D)[None, :] & (weight_a > 0.0)[:, None]
    in_b = live[:, None] & (d < D)[None, :] & (weight_b > 0.0)[:, None]
    a = tl.load(out_a_ptr + at, mask=in_a, other=0.0).to(tl.float32)
    b = tl.load(out_b_ptr + at, mask=in_b, other=0.0).to(tl.float32)
    merged = a * (weight_a / divisor)[:, None] + b * (weight_b / divisor)[:, None]
    tl.store(
        out_ptr + at, merged.to(out_ptr.dtype.element_ty), mask=live[:, None] & (d < D)[None, :]
    )


def launch(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    out_a, lse_a, out_b, lse_b = (t.contiguous() for t in (out_a, lse_a, out_b, lse_b))
    out, lse = torch.empty_like(out_a), torch.empty_like(lse_a)
    rows, d = lse.numel(), out.shape[-1]
    if rows:
        block_d = triton.next_power_of_2(max(d, 1))
        block_r = max(1, 2048 // block_d)
        with torch.cuda.device_of(out_a):
            merge_states_kernel[(triton.cdiv(rows, block_r),)](
                out_a,
                lse_a,
                out_b,
                lse_b,
                out,
                lse,
                rows,
                d,
                block_r,
                block_d,
                enable_fp_fusion=False,
            )
    return out, lse
