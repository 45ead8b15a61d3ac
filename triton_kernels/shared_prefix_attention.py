"""shared_prefix_attention: as prefix_tree_attention, but the lengths are known to the device alone, so the
programs are laid out by capacity: first those of chunks that lie in the prefix (all rows of a group
share them), then those of chunks that reach into suffixes. A program without tokens ends at once."""

import torch
import triton
import triton.language as tl

from . import attention
from .attention import attend, empty_state, store_state

FEW = 4  # paths of a program that go through what is left of the prefix together, then one by one


@triton.jit
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
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    g = tl.program_id(2).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    many: tl.constexpr = ROWS // GROUP
    prefix = tl.cast(prefix_tokens, tl.int32)
    if PREFIX_LENS:
        prefix = tl.load(prefix_lens_ptr + g * prefix_stride).to(tl.int32)
    i = tl.program_id(0)
    shared = i < shared_programs
    j = tl.where(shared, i, i - shared_programs)
    chunk = tl.where(shared, j % prefix_chunks, prefix // CHUNK + j % suffix_chunks)
    first_path = tl.where(shared, j // prefix_chunks * many, j // suffix_chunks * FEW)
    last_path = tl.minimum(first_path + tl.where(shared, many, FEW), paths)

    row = tl.arange(0, ROWS)
    token = tl.arange(0, TILE)
    d = tl.arange(0, BLOCK_D)
    path = first_path + row // GROUP
    head = kv_head * GROUP + row % GROUP
    suffix_at = suffix_lens_ptr + g * suffix_stride_g
    length = prefix + tl.load(
        suffix_at + path.to(tl.int64) * suffix_stride_n, mask=path < last_path, other=0
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
        kp = k_prefix_ptr + g * kp_group + kv_head * kp_head
        vp = v_prefix_ptr + g * vp_group + kv_head * vp_head
        state = empty_state(ROWS, BLOCK_D)
        # First the tiles that all rows share, then each path's own, up to the longest of them.
        end = tl.minimum((chunk + 1) * CHUNK, tl.max(tl.where(live, length, 0), 0))
        own_start = tl.minimum(
            (chunk + 1) * CHUNK, tl.maximum(prefix // TILE * TILE, chunk * CHUNK)
        )
        common = (own_start - chunk * CHUNK) // TILE
        own = tl.maximum((end - own_start + TILE - 1) // TILE, 0)
        for step in range(0, common + own * (last_path - first_path)):
            all_rows = step < common
            later = tl.maximum(step - common, 0)
            n = first_path + later // tl.maximum(own, 1) + tl.full((), 0, tl.int64)
            start = tl.where(
                all_rows, chunk * CHUNK + step * TILE, own_start + later % tl.maximum(own, 1) * TILE
            )
            reach = tl.load(suffix_at + n * suffix_stride_n).to(tl.int32)
            position = (start + token).to(tl.int64)
            in_tile = position < prefix + tl.where(all_rows, 0, reach)
            mine = live & (all_rows | (path == n))
            of_prefix = (position < prefix)[:, None]
            before, after = position[:, None], (position - prefix)[:, None]
            ks = k_suffix_ptr + g * ks_group + n * ks_path + kv_head * ks_head
            vs = v_suffix_ptr + g * vs_group + n * vs_path + kv_head * vs_head
            k_at = tl.where(of_prefix, kp + before * kp_token, ks + after * ks_token)
            v_at = tl.where(of_prefix, vp + before * vp_token, vs + after * vs_token)
            if ALIGNED:  # which the choice between two pointers hides from the compiler
                k_at = tl.multiple_of(k_at, (16, 16))
                v_at = tl.multiple_of(v_at, (16, 16))
            state = attend(
                state,
                q,
                k_at + d[None, :],
                v_at + d[None, :],
                mine[:, None] & in_tile[None, :],
                mine,
                in_tile,
                d,
                scale,
                0.0,
                D,
                False,
                False,
            )
        at = ((g * paths + path) * chunks + chunk) * heads + head
        store_state(state, at, live, d, high_ptr, total_ptr, values_ptr, D)


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
    group, chunk = heads // kv_heads, attention.CHUNK
    rows = attention.rows(group, q.dtype)
    # With nothing of the prefix left over, paths need not wait for each other.
    few = 1 if prefix_lens is None and prefix % chunk == 0 else min(FEW, rows // group)
    prefix_chunks = prefix // chunk
    suffix_chunks = triton.cdiv(suffix, chunk) + 1
    chunks = prefix_chunks + suffix_chunks
    shared = prefix_chunks * triton.cdiv(paths, rows // group)
    states = attention.States(groups * paths * chunks, q)
    ends = torch.empty(groups * paths, 3, dtype=torch.int32, device=q.device)
    with torch.cuda.device_of(q):
        grid = (shared + triton.cdiv(paths, few) * suffix_chunks, kv_heads, groups)
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
            rows,
            attention.TILE,
            chunk,
            triton.next_power_of_2(d),
            num_warps=4 if d <= 64 else 8,
            num_stages=2,
            enable_fp_fusion=True,
        )
        states.merge(ends[:, 0], ends[:, 1], ends[:, 2], out, lse)
    return out, lse
