"""shared_prefix_attention: as prefix_tree_attention, but the lengths are known to the device alone, so the
programs are laid out by capacity: first those of chunks that lie in the prefix (all rows of a group
share them), then those of chunks that reach into suffixes. A program without tokens ends at once."""

import torch
import triton
import triton.language as tl

from . import attention
from .attention import attend, empty_state, is_spoilt, store_state

MAX_GROUPS = 65_535  # programs that a launch may have in its third dimension
FEW = 4  # paths of a program that go through what is left of the prefix together, then one by one


@triton.jit
def walk(
    q,
    path,
    live,
    kp,
    vp,
    ks,
    vs,
    kp_token,
    vp_token,
    ks_path,
    ks_token,
    vs_path,
    vs_token,
    lens_at,
    lens_stride,
    prefix,
    start,
    own_start,
    end,
    first_path,
    last_path,
    scale,
    ALIGNED: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAREFUL: tl.constexpr,
):
    """The state of rows after the tiles from `start` on that all share, then each path's own from `own_start`
    on, up to the end of the longest."""
    token = tl.arange(0, TILE)
    d = tl.arange(0, BLOCK_D)
    state = empty_state(q.shape[0], BLOCK_D)
    common = (own_start - start) // TILE
    own = tl.maximum((end - own_start + TILE - 1) // TILE, 0)
    n = first_path
    reach = tl.load(lens_at + first_path.to(tl.int64) * lens_stride)
    for step in tl.range(
        0, common + own * (last_path - first_path), num_stages=1 if CAREFUL else None
    ):
        all_rows = step < common
        position = start + token
        in_tile = position < prefix + tl.where(all_rows, 0, reach.to(tl.int32))
        mine = live & (all_rows | (path == n))
        of_prefix = position < prefix
        place = tl.where(of_prefix, position, position - prefix).to(tl.int64)
        k_own, v_own = ks + n.to(tl.int64) * ks_path, vs + n.to(tl.int64) * vs_path
        k_at = tl.where(of_prefix, kp, k_own) + place * tl.where(of_prefix, kp_token, ks_token)
        v_at = tl.where(of_prefix, vp, v_own) + place * tl.where(of_prefix, vp_token, vs_token)
        if ALIGNED:  # which the choice between two pointers hides from the compiler
            k_at = tl.multiple_of(k_at, 16)
            v_at = tl.multiple_of(v_at, 16)
        start += TILE
        last = start >= end
        start = tl.where(last, own_start, start)
        n += last.to(tl.int32)
        # Read a step ahead, so that the loads of keys and values need not wait for it.
        reach = tl.load(lens_at + n.to(tl.int64) * lens_stride, mask=n < last_path, other=0)
        state = attend(
            state,
            q,
            k_at[:, None] + d[None, :],
            v_at[:, None] + d[None, :],
            mine,
            in_tile,
            0,
            d,
            scale,
            0.0,
            D,
            False,
            False,
            CAREFUL,
        )
    return state


COUNTS = ["prefix_tokens", "suffix_stride_g", "paths", "chunks"]
COUNTS += ["shared_programs", "prefix_chunks", "suffix_chunks"]


@triton.jit(do_not_specialize=COUNTS)
def shared_prefix_attention_kernel(
    q_ptr,
    k_prefix_ptr,
    v_prefix_ptr,
    k_suffix_ptr,
    v_suffix_ptr,
    prefix_lens_ptr,
    suffix_lens_ptr,
    high_ptr,
    total_ptr,
    values_ptr,
    paths_ptr,
    prefix_tokens,
    prefix_stride,
    suffix_stride_g,
    suffix_stride_n,
    paths,
    heads,
    chunks,
    shared_programs,
    prefix_chunks,
    suffix_chunks,
    q_group,
    q_path,
    q_head,
    kp_group,
    kp_token,
    kp_head,
    vp_group,
    vp_token,
    vp_head,
    ks_group,
    ks_path,
    ks_token,
    ks_head,
    vs_group,
    vs_path,
    vs_token,
    vs_head,
    scale: tl.float32,
    PREFIX_LENS: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    FEW: tl.constexpr,
    MANY: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    g = tl.program_id(2).to(tl.int64)
    kv_head = (tl.program_id(1) // BLOCKS).to(tl.int64)
    prefix = tl.cast(prefix_tokens, tl.int32)
    if PREFIX_LENS:
        prefix = tl.load(prefix_lens_ptr + g * prefix_stride).to(tl.int32)
    i = tl.program_id(0)
    shared = i < shared_programs
    j = tl.where(shared, i, i - shared_programs)
    chunk = tl.where(shared, j % prefix_chunks, prefix // CHUNK + j % suffix_chunks)
    first_path = tl.where(shared, j // prefix_chunks * MANY, j // suffix_chunks * FEW)
    last_path = tl.minimum(first_path + tl.where(shared, MANY, FEW), paths)

    row = tl.program_id(1) % BLOCKS * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    path = first_path + row // GROUP
    head = kv_head * GROUP + row % GROUP
    lens_at = suffix_lens_ptr + g * suffix_stride_g
    length = prefix + tl.load(
        lens_at + path.to(tl.int64) * suffix_stride_n, mask=path < last_path, other=0
    ).to(tl.int32)
    if (shared == 0) & (j % suffix_chunks == 0) & (kv_head == 0):
        # The merge is told each path, its length and its first state.
        at = paths_ptr + (g * paths + path) * 3
        first_row = (path < last_path) & (row % GROUP == 0)
        tl.store(at, (g * paths + path).to(tl.int32), mask=first_row)
        tl.store(at + 1, length, mask=first_row)
        tl.store(at + 2, ((g * paths + path) * chunks).to(tl.int32), mask=first_row)
    live = (path < last_path) & (length > chunk * CHUNK)
    live = live & ((shared == 0) | ((chunk + 1) * CHUNK <= prefix))
    if tl.max(live.to(tl.int32), 0) > 0:
        q_at = q_ptr + g * q_group + path.to(tl.int64)[:, None] * q_path + head[:, None] * q_head
        inside = live[:, None] & (d < D)[None, :]
        q = tl.load(q_at + d[None, :], mask=inside, other=0.0)
        start = chunk * CHUNK
        end = tl.minimum(start + CHUNK, tl.max(tl.where(live, length, 0), 0))
        own_start = tl.minimum(start + CHUNK, tl.maximum(prefix // TILE * TILE, chunk * CHUNK))
        kp = k_prefix_ptr + g * kp_group + kv_head * kp_head
        vp = v_prefix_ptr + g * vp_group + kv_head * vp_head
        ks = k_suffix_ptr + g * ks_group + kv_head * ks_head
        vs = v_suffix_ptr + g * vs_group + kv_head * vs_head
        way = (
            q,
            path,
            live,
            kp,
            vp,
            ks,
            vs,
            kp_token,
            vp_token,
            ks_path,
            ks_token,
            vs_path,
            vs_token,
        )
        way += (
            lens_at,
            suffix_stride_n,
            prefix,
            start,
            own_start,
            end,
            first_path,
            last_path,
            scale,
        )
        plain: tl.constexpr = q.dtype != tl.float32
        state = walk(*way, ALIGNED, D, TILE, BLOCK_D, not plain)
        if plain and is_spoilt(state):
            state = walk(*way, ALIGNED, D, TILE, BLOCK_D, True)
        at = ((g * paths + first_path) * chunks + chunk) * heads + kv_head * GROUP
        at += row // GROUP * (chunks * heads) + row % GROUP
        # Rows that end before this chunk have room there too.
        store_state(state, at, path < last_path, d, high_ptr, total_ptr, values_ptr, D)


def aligned(tensor: torch.Tensor) -> bool:
    """Whether every row starts at a multiple of 16 bytes."""
    each = 16 // tensor.element_size()
    return tensor.data_ptr() % 16 == 0 and not any(s % each for s in tensor.stride()[:-1])


def launch(
    q: torch.Tensor,
    k_prefix: torch.Tensor,
    v_prefix: torch.Tensor,
    k_suffix: torch.Tensor,
    v_suffix: torch.Tensor,
    suffix_lens: torch.Tensor,
    *,
    prefix_lens: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    groups, paths, heads, d = q.shape
    prefix, kv_heads, suffix = k_prefix.shape[1], k_prefix.shape[2], k_suffix.shape[2]
    out = torch.empty(groups, paths, heads, d, dtype=q.dtype, device=q.device)
    lse = torch.empty(groups, paths, heads, dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    if groups > MAX_GROUPS:
        raise ValueError(f"q: got {groups} groups, expected at most {MAX_GROUPS} with Triton")
    group, chunk, rows = heads // kv_heads, attention.CHUNK, attention.rows(q.dtype)
    many, blocks = max(1, rows // group), triton.cdiv(group, rows)
    # With nothing of the prefix left over, paths need not wait for each other.
    left_over = min(prefix, chunk - 1) if prefix_lens is not None else prefix % chunk
    few = min(FEW, many) if left_over else 1
    prefix_chunks = prefix // chunk
    suffix_chunks = max(1, triton.cdiv(left_over + suffix, chunk))
    chunks = prefix_chunks + suffix_chunks
    shared = prefix_chunks * triton.cdiv(paths, many)
    states = attention.States(groups * paths * chunks, q)
    ends = torch.empty(groups * paths, 3, dtype=torch.int32, device=q.device)
    with torch.cuda.device_of(q):
        grid = (shared + triton.cdiv(paths, few) * suffix_chunks, kv_heads * blocks, groups)
        shared_prefix_attention_kernel[grid](
            q,
            k_prefix,
            v_prefix,
            k_suffix,
            v_suffix,
            suffix_lens if prefix_lens is None else prefix_lens,
            suffix_lens,
            states.high,
            states.total,
            states.values,
            ends,
            prefix,
            0 if prefix_lens is None else prefix_lens.stride(0),
            *suffix_lens.stride(),
            paths,
            heads,
            chunks,
            shared,
            max(prefix_chunks, 1),
            suffix_chunks,
            *q.stride()[:3],
            *k_prefix.stride()[:3],
            *v_prefix.stride()[:3],
            *k_suffix.stride()[:4],
            *v_suffix.stride()[:4],
            d**-0.5 if scale is None else scale,
            prefix_lens is not None,
            all(map(aligned, (k_prefix, v_prefix, k_suffix, v_suffix))),
            group,
            d,
            few,
            many,
            blocks,
            rows,
            attention.TILE,
            chunk,
            triton.next_power_of_2(d),
            enable_fp_fusion=True,
            **attention.resources(q.dtype, d),
        )
        states.merge(ends[:, 0], ends[:, 1], ends[:, 2], out, lse)
    return out, lse
