"""store_kv: bound by memory. One program a row, so that a row of keys and one of values are each one
coalesced step; which of several rows for one slot is written is settled by looking at the later slots."""

import torch
import triton
import triton.language as tl


@triton.jit
def store_kv_kernel(
    k_ptr,
    v_ptr,
    k_pages_ptr,
    v_pages_ptr,
    slots_ptr,
    rows,
    pool_slots,
    page_size,
    k_row,
    k_head,
    v_row,
    v_head,
    k_page,
    k_slot,
    k_slot_head,
    v_page,
    v_slot,
    v_slot_head,
    slot_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row * slot_stride).to(tl.int64)
    if (slot >= 0) & (slot < pool_slots):
        later = 0
        for first in range(tl.program_id(0) + 1, rows, BLOCK_S):
            at = first + tl.arange(0, BLOCK_S)
            other = tl.load(slots_ptr + at.to(tl.int64) * slot_stride, mask=at < rows, other=-1)
            later += tl.sum((other.to(tl.int64) == slot).to(tl.int32), 0)
        if later == 0:
            page, offset = slot // page_size, slot % page_size
            h = tl.arange(0, BLOCK_H)[:, None].to(tl.int64)
            d = tl.arange(0, BLOCK_D)[None, :]
            live = (h < HEADS) & (d < D)
            k = tl.load(k_ptr + row * k_row + h * k_head + d, mask=live)
            v = tl.load(v_ptr + row * v_row + h * v_head + d, mask=live)
            k_at = k_pages_ptr + page * k_page + offset * k_slot
            v_at = v_pages_ptr + page * v_page + offset * v_slot
            tl.store(k_at + h * k_slot_head + d, k, mask=live)
            tl.store(v_at + h * v_slot_head + d, v, mask=live)


def launch(
    k: torch.Tensor,
    v: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    rows, heads, d = k.shape
    if k.numel() == 0:
        return
    with torch.cuda.device_of(k):
        store_kv_kernel[(rows,)](
            k,
            v,
            k_pages,
            v_pages,
            slots,
            rows,
            k_pages.shape[0] * k_pages.shape[1],
            k_pages.shape[1],
            *k.stride()[:2],
            *v.stride()[:2],
            *k_pages.stride()[:3],
            *v_pages.stride()[:3],
            slots.stride(0),
            heads,
            d,
            triton.next_power_of_2(heads),
            triton.next_power_of_2(d),
            min(1024, triton.next_power_of_2(rows)),
        )
