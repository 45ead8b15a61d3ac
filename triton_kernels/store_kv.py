"""store_kv: bound by memory. One program a row, so that a row of keys and one of values are each one
coalesced step. Of several rows for one slot the last is written: while rows are few a program looks at the
later slots, where they are many two small kernels before it leave the last row for each slot in a table."""

import torch
import triton
import triton.language as tl

FEW = 1024  # rows


@triton.jit
def rows_and_slots(slots_ptr, rows, pool_slots, slot_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots_ptr + row.to(tl.int64) * slot_stride, mask=row < rows, other=-1)
    return row, slot.to(tl.int64), (slot >= 0) & (slot < pool_slots)


@triton.jit(do_not_specialize=["rows"])
def any_row_kernel(table_ptr, slots_ptr, rows, pool_slots, slot_stride, BLOCK: tl.constexpr):
    row, slot, live = rows_and_slots(slots_ptr, rows, pool_slots, slot_stride, BLOCK)
    tl.atomic_xchg(table_ptr + slot, row, mask=live, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def last_row_kernel(table_ptr, slots_ptr, rows, pool_slots, slot_stride, BLOCK: tl.constexpr):
    row, slot, live = rows_and_slots(slots_ptr, rows, pool_slots, slot_stride, BLOCK)
    before = live & (tl.load(table_ptr + slot, mask=live, other=0, volatile=True) < row)
    tl.atomic_max(table_ptr + slot, row, mask=before, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def store_kv_kernel(
    k_ptr,
    v_ptr,
    k_pages_ptr,
    v_pages_ptr,
    slots_ptr,
    table_ptr,
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
    HAS_TABLE: tl.constexpr,
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
        if HAS_TABLE:
            later += (tl.load(table_ptr + slot) != row).to(tl.int32)
        else:
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
    pool_slots = k_pages.shape[0] * k_pages.shape[1]
    table = slots
    with torch.cuda.device_of(k):
        if rows > FEW:
            table = slots.new_empty(pool_slots, dtype=torch.int32)
            for kernel in (any_row_kernel, last_row_kernel):
                kernel[(triton.cdiv(rows, 512),)](
                    table, slots, rows, pool_slots, slots.stride(0), 512
                )
        store_kv_kernel[(rows,)](
            k,
            v,
            k_pages,
            v_pages,
            slots,
            table,
            rows,
            pool_slots,
            k_pages.shape[1],
            *k.stride()[:2],
            *v.stride()[:2],
            *k_pages.stride()[:3],
            *v_pages.stride()[:3],
            slots.stride(0),
            rows > FEW,
            heads,
            d,
            triton.next_power_of_2(heads),
            triton.next_power_of_2(d),
            FEW,
        )
