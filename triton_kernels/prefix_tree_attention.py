"""prefix_tree_attention: bound by memory where few rows share a tile and by the matrix product where many
do; one launch works through both kinds so that they overlap. A program takes an item of a plan
(csrc/cpu/tree_plan.h), read from the device, so that a captured graph stays valid when it is refilled;
items that are not there end at once."""

import torch
import triton
import triton.language as tl

from . import attention
from .attention import attend, empty_state, is_spoilt, store_state


@triton.jit
def read_step(at, slots_at, step, steps, token, TILE: tl.constexpr, GRANULE: tl.constexpr):
    """Of an item's step: its tile, first and last rank, and its tokens: how many, and where they lie."""
    there = step < steps
    tile = tl.load(at + step * 4, mask=there, other=0)
    first = tl.load(at + step * 4 + 1, mask=there, other=0)
    last = tl.load(at + step * 4 + 2, mask=there, other=0)
    tokens = tl.load(at + step * 4 + 3, mask=there, other=0)
    slots_at += step * (TILE // GRANULE)
    slot = tl.load(slots_at + token // GRANULE, mask=there, other=0)
    return tile, first, last, tokens, slot


@triton.jit
def walk(
    steps_at,
    slots_at,
    steps,
    q,
    k_ptr,
    v_ptr,
    rank,
    live,
    since,
    lowest,
    k_page,
    k_token,
    v_page,
    v_token,
    scale,
    softcap,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TILE: tl.constexpr,
    GRANULE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAREFUL: tl.constexpr,
):
    """The state of an item's rows after its steps."""
    token = tl.arange(0, TILE)
    d = tl.arange(0, BLOCK_D)
    state = empty_state(q.shape[0], BLOCK_D)
    tile, first, last, tokens, slot = read_step(steps_at, slots_at, 0, steps, token, TILE, GRANULE)
    for step in tl.range(0, steps, num_stages=1 if CAREFUL else None):
        below = live & (rank >= first) & (rank < last)
        in_tile = token < tokens
        seen_from = since - tile * TILE
        if WINDOW:
            in_tile = in_tile & (tile * TILE + token >= lowest)
        place = slot + token % GRANULE
        page, offset = (place // PAGE).to(tl.int64), (place % PAGE).to(tl.int64)
        k_at = k_ptr + (page * k_page + offset * k_token)[:, None] + d[None, :]
        v_at = v_ptr + (page * v_page + offset * v_token)[:, None] + d[None, :]
        # Read a step ahead, so that the loads of keys and values need not wait for it.
        tile, first, last, tokens, slot = read_step(
            steps_at, slots_at, step + 1, steps, token, TILE, GRANULE
        )
        state = attend(
            state,
            q,
            k_at,
            v_at,
            below,
            in_tile,
            seen_from,
            d,
            scale,
            softcap,
            D,
            WINDOW,
            SOFTCAP,
            CAREFUL,
        )
    return state


@triton.jit(do_not_specialize=["window"])
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
    heads,
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
    PAGE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    item_at = items_ptr + tl.program_id(0) * 5
    first_rank = tl.load(item_at)
    count = tl.load(item_at + 1)
    first_step = tl.load(item_at + 2).to(tl.int64)
    steps = tl.load(item_at + 3)
    chunk = tl.load(item_at + 4)
    kv_head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    rank = first_rank + row // GROUP
    live = row < count * GROUP
    head = kv_head * GROUP + row % GROUP
    d = tl.arange(0, BLOCK_D)
    path = tl.load(paths_ptr + rank * 3, mask=live, other=0).to(tl.int64)
    q_at = path[:, None] * q_path + head[:, None] * q_head + d[None, :]
    q = tl.load(q_ptr + q_at, mask=live[:, None] & (d < D)[None, :], other=0.0)
    since, lowest = tl.zeros((ROWS,), tl.int32), 0
    if WINDOW:
        since = tl.load(paths_ptr + rank * 3 + 1, mask=live, other=2**31 - 1) - window
        lowest = tl.min(since, 0)
        if (chunk + 1) * CHUNK <= lowest:
            steps *= 0
    steps_at, slots_at = steps_ptr + first_step * 4, slots_ptr + first_step * (TILE // GRANULE)
    k_ptr += kv_head * k_head
    v_ptr += kv_head * v_head
    way = (steps_at, slots_at, steps, q, k_ptr, v_ptr, rank, live, since, lowest)
    way += (k_page, k_token, v_page, v_token, scale, softcap)
    plain: tl.constexpr = q.dtype != tl.float32
    state = walk(*way, D, WINDOW, SOFTCAP, TILE, GRANULE, PAGE, BLOCK_D, not plain)
    if plain and is_spoilt(state):
        state = walk(*way, D, WINDOW, SOFTCAP, TILE, GRANULE, PAGE, BLOCK_D, True)
    first_state = tl.load(paths_ptr + rank * 3 + 2, mask=live, other=0)
    at = (first_state + chunk).to(tl.int64) * heads + (kv_head * GROUP + row % GROUP)
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
    group, rows = heads // kv_heads, attention.rows(q.dtype)
    page, k_strides, v_strides = k_pages.shape[1], k_pages.stride()[:3], v_pages.stride()[:3]
    if all(strides[0] == page * strides[1] for strides in (k_strides, v_strides)):
        # Pages that lie behind one another are as good as pages of one token, which need no division.
        page = 1
        k_strides, v_strides = ((s[1], *s[1:]) for s in (k_strides, v_strides))
    with torch.cuda.device_of(q):
        if items.shape[0]:
            prefix_tree_attention_kernel[(items.shape[0], kv_heads, triton.cdiv(group, rows))](
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
                heads,
                *q.stride()[:2],
                *k_strides,
                *v_strides,
                d**-0.5 if scale is None else scale,
                0 if window is None else min(window, 2**31 - 1),
                0.0 if softcap is None else softcap,
                group,
                d,
                window is not None,
                softcap is not None,
                rows,
                attention.TILE,
                attention.CHUNK,
                attention.TILE // slots.shape[1],
                page,
                triton.next_power_of_2(d),
                enable_fp_fusion=True,
                **attention.resources(q.dtype, d),
            )
        states.merge(paths[:, 0], paths[:, 1], paths[:, 2], out, lse)
    return out, lse
