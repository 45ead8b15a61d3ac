"""prefix_tree_attention: bound by memory where few rows share a tile and by the matrix product where many
do; one launch works through both kinds so that they overlap. Programs go through the items of a plan
(csrc/cpu/tree_plan.h), read from the device, so that a captured graph stays valid when it is refilled."""

import torch
import triton
import triton.language as tl

from . import attention
from .attention import attend, empty_state, store_state

PROGRAMS = 2048  # of all KV heads: enough to fill any device, each takes every n-th item


@triton.jit
def prefix_tree_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    items_ptr,
    steps_ptr,
    slots_ptr,
    paths_ptr,
    high_ptr,
    total_ptr,
    values_ptr,
    items,
    heads,
    page_size,
    q_path,
    q_head,
    k_page,
    k_token,
    k_head,
    v_page,
    v_token,
    v_head,
    scale: tl.float32,
    window,
    softcap: tl.float32,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    GRANULE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    kv_head = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, ROWS)
    token = tl.arange(0, TILE)
    d = tl.arange(0, BLOCK_D)
    k_ptr += kv_head * k_head
    v_ptr += kv_head * v_head
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        first_path = tl.load(items_ptr + item * 5)
        count = tl.load(items_ptr + item * 5 + 1)
        first_step = tl.load(items_ptr + item * 5 + 2)
        last_step = first_step + tl.load(items_ptr + item * 5 + 3)
        chunk = tl.load(items_ptr + item * 5 + 4)
        rank = first_path + row // GROUP
        live = row < count * GROUP
        head = kv_head * GROUP + row % GROUP
        path = tl.load(paths_ptr + rank * 3, mask=live, other=0).to(tl.int64)
        q_at = path[:, None] * q_path + head[:, None] * q_head + d[None, :]
        q = tl.load(q_ptr + q_at, mask=live[:, None] & (d < D)[None, :], other=0.0)
        since = tl.zeros((ROWS,), tl.int32)
        if WINDOW:
            since = tl.load(paths_ptr + rank * 3 + 1, mask=live, other=0) - window
        state = empty_state(ROWS, BLOCK_D)
        for step in range(first_step, last_step):
            tile = tl.load(steps_ptr + step * 4)
            below = rank >= tl.load(steps_ptr + step * 4 + 1)
            below = below & (rank < tl.load(steps_ptr + step * 4 + 2)) & live
            in_tile = token < tl.load(steps_ptr + step * 4 + 3)
            first = slots_ptr + step * tl.full((), TILE // GRANULE, tl.int64)
            slot = tl.load(first + token // GRANULE) + token % GRANULE
            seen = below[:, None] & in_tile[None, :]
            if WINDOW:
                seen = seen & (tile * TILE + token[None, :] >= since[:, None])
                in_tile = tl.max(seen.to(tl.int32), 0) > 0
                below = below & (tl.max(seen.to(tl.int32), 1) > 0)
            page, offset = (slot // page_size).to(tl.int64), slot % page_size
            k_at = page * k_page + offset.to(tl.int64) * k_token
            v_at = page * v_page + offset.to(tl.int64) * v_token
            state = attend(
                state,
                q,
                k_ptr + k_at[:, None] + d[None, :],
                v_ptr + v_at[:, None] + d[None, :],
                seen,
                below,
                in_tile,
                d,
                scale,
                softcap,
                D,
                SOFTCAP,
                WINDOW,
            )
        first_state = tl.load(paths_ptr + rank * 3 + 2, mask=live, other=0)
        at = (first_state + chunk).to(tl.int64) * heads + head
        store_state(state, at, live, d, high_ptr, total_ptr, values_ptr, D)


def launch(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    parents: torch.Tensor,
    page_offsets: torch.Tensor,
    page_ids: torch.Tensor,
    lengths: torch.Tensor,
    leaves: torch.Tensor,
    *,
    plan: list[torch.Tensor] | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    n, heads, d = q.shape
    kv_heads = k_pages.shape[2]
    out = torch.empty(n, heads, d, dtype=q.dtype, device=q.device)
    lse = torch.empty(n, heads, dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    if plan is None:
        raise ValueError("plan: got None, expected the plan of the tree (PrefixTree.plan)")
    items, steps, slots, paths, state_rows = plan
    states = attention.States(state_rows.shape[0], q)
    group = heads // kv_heads
    with torch.cuda.device_of(q):
        if items.shape[0]:
            programs = min(items.shape[0], max(1, PROGRAMS // kv_heads))
            prefix_tree_attention_kernel[(programs, kv_heads)](
                q,
                k_pages,
                v_pages,
                items,
                steps,
                slots,
                paths,
                states.high,
                states.total,
                states.values,
                items.shape[0],
                heads,
                k_pages.shape[1],
                *q.stride()[:2],
                *k_pages.stride()[:3],
                *v_pages.stride()[:3],
                d**-0.5 if scale is None else scale,
                0 if window is None else min(window, 2**31 - 1),
                0.0 if softcap is None else softcap,
                group,
                d,
                window is not None,
                softcap is not None,
                attention.rows(group, q.dtype),
                attention.TILE,
                attention.CHUNK,
                attention.TILE // slots.shape[1],
                triton.next_power_of_2(d),
                num_warps=4 if d <= 64 else 8,
                num_stages=2,
                enable_fp_fusion=True,
            )
        states.merge(paths[:, 0], paths[:, 1], paths[:, 2], out, lse)
    return out, lse
