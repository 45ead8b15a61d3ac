"""prefix_tree_attention: one decode step of paths in a forest over a paged KV pool."""

from __future__ import annotations

import torch

from .. import _C
from ..dispatch import Implementation, register, triton
from ..prefix_tree import PrefixTree
from . import checks


def prefix_tree_attention(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    tree: PrefixTree,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One decode step of attention for N paths of a forest whose nodes lie in a pool of pages.

    Path n attends to all tokens of its nodes, from the root to tree.leaves[n]. With K, V their keys
    and values for KV head h // (Hq // Hkv)::

        s = scale * K @ q[n, h]         then, with a softcap,  s = softcap * tanh(s / softcap)
        lse[n, h] = log(sum(exp(s)))    out[n, h] = exp(s - lse[n, h]) @ V

    A node is read once for all the paths below it, and sharing never changes a result: the native
    kernel gives the same bits however a path's tokens are cut into nodes and pages, whatever the
    other paths, the strides and the number of threads. The same tokens given to
    `shared_prefix_attention` give the same bits too.

    Args:
        q: [N, Hq, D], float32, bfloat16 or float16 (float64 with the reference). D is a multiple of
            8 from 16 to 256. The query stands at a path's last token.
        k_pages, v_pages: [pages, page_size, Hkv, D], like q; Hkv divides Hq. Slots that no node
            holds are never read: they may hold anything, NaN included.
        tree: a `PrefixTree` of page size page_size, on q's device.
        scale: 1 / sqrt(D) by default.
        window: a path sees its last `window` tokens only (at least 1); None: all.
        softcap: a positive bound on |s|; None: none.
        impl: None, "reference", "native" or "triton" (see `pyttc.explain`).

    Any stride is served but the last dimension's, which must be 1.

    Returns:
        (out, lse): out [N, Hq, D] like q; lse [N, Hq] float32 (float64 for float64), natural log.
        A path without tokens has out 0 and lse -inf.

    Sums are float32. GPUs, and processors that multiply pairs of bfloat16, round exp(s - max(s)) to
    q's dtype before it meets V, as torch's own kernels do; lse knows nothing of it.

    Raises:
        ValueError, TypeError: for an argument of another shape, dtype, stride or device; on the CPU
            also for a tree whose values are out of range, before anything is written.

    Source: Hydragen (arXiv 2402.05099) for two levels, PAT (arXiv 2511.22333) for trees.
    """
    if not isinstance(tree, PrefixTree):
        raise TypeError(f"tree: got {type(tree).__name__}, expected a pyttc.PrefixTree")
    if (
        isinstance(k_pages, torch.Tensor)
        and k_pages.dim() > 1
        and k_pages.shape[1] != tree.page_size
    ):
        checks.fail_shape("k_pages", k_pages, f"pages of {tree.page_size} tokens, as in the tree")
    out, lse = _op(
        q,
        k_pages,
        v_pages,
        tree.parents,
        tree.page_offsets,
        tree.page_ids,
        tree.lengths,
        tree.leaves,
        plan=tree.plan(q, k_pages)
        if impl in ON_GPU or (impl is None and getattr(q, "is_cuda", False))
        else None,
        scale=scale,
        window=window,
        softcap=softcap,
        impl=impl,
    )
    return out, lse


def check(
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
) -> None:
    dtype, shape, device = q.dtype, q.shape, q.device
    if len(shape) != 3:
        checks.fail_shape("q", q, "[N, Hq, D]")
    n, hq, d = shape
    if dtype not in checks.FLOATS:
        checks.fail_dtype("q", q, checks.FLOAT_NAMES)
    if d % 8 or not 16 <= d <= 256:
        checks.fail_shape("q", q, "a last dimension that is a multiple of 8 from 16 to 256")
    pool = k_pages.shape
    if len(pool) != 4 or pool[3] != d:
        checks.fail_shape("k_pages", k_pages, f"[pages, page_size, Hkv, {d}], with q's D")
    if not 1 <= pool[1] <= 256:
        checks.fail_shape("k_pages", k_pages, "a page size of 1 to 256")
    if pool[2] < 1 or hq % pool[2]:
        checks.fail_shape("k_pages", k_pages, f"a number of heads that divides q's {hq}")
    if v_pages.shape != pool:
        checks.fail_shape("v_pages", v_pages, f"{list(pool)}, as k_pages")
    if k_pages.dtype is not dtype:
        checks.fail_dtype("k_pages", k_pages, f"{dtype}, as q")
    if v_pages.dtype is not dtype:
        checks.fail_dtype("v_pages", v_pages, f"{dtype}, as q")
    nodes = lengths.shape
    if len(nodes) != 1:
        checks.fail_shape("lengths", lengths, "[nodes]")
    if parents.shape != nodes:
        checks.fail_shape("parents", parents, f"{list(nodes)}, as lengths")
    if len(page_offsets.shape) != 1 or page_offsets.shape[0] != nodes[0] + 1:
        checks.fail_shape("page_offsets", page_offsets, f"[{nodes[0] + 1}], nodes + 1")
    if len(page_ids.shape) != 1:
        checks.fail_shape("page_ids", page_ids, "one dimension")
    if len(leaves.shape) != 1 or leaves.shape[0] != n:
        checks.fail_shape("leaves", leaves, f"[{n}], with q's N")
    integers = checks.INTS
    if not (
        parents.dtype in integers
        and page_offsets.dtype in integers
        and page_ids.dtype in integers
        and lengths.dtype in integers
        and leaves.dtype in integers
        and device == k_pages.device == v_pages.device == parents.device == page_offsets.device
        and device == page_ids.device == lengths.device == leaves.device
    ):
        tensors = {
            "parents": parents,
            "page_offsets": page_offsets,
            "page_ids": page_ids,
            "lengths": lengths,
            "leaves": leaves,
        }
        for name, tensor in tensors.items():
            if tensor.dtype not in integers:
                checks.fail_dtype(name, tensor, "int32 or int64")
        checks.fail_device(device, k_pages=k_pages, v_pages=v_pages, **tensors)
    if not (q.stride(2) == 1 and k_pages.stride(3) == 1 and v_pages.stride(3) == 1):
        checks.fail_stride(q=q, k_pages=k_pages, v_pages=v_pages)
    if scale is not None and not abs(scale) < torch.inf:
        checks.fail("scale", scale, "a finite number")
    if window is not None and not window >= 1:
        checks.fail("window", window, "at least 1 token")
    if softcap is not None and not 0 < softcap < torch.inf:
        checks.fail("softcap", softcap, "a positive number")


def fake(
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
    n, hq, d = q.shape
    state = torch.float64 if q.dtype is torch.float64 else torch.float32
    return q.new_empty(n, hq, d), q.new_empty((n, hq), dtype=state)


def reference(
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
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    state = torch.float64 if q.dtype is torch.float64 else torch.float32
    lse = torch.full(q.shape[:2], -torch.inf, dtype=state, device=q.device)
    up, ends = parents.tolist(), leaves.tolist()
    slots = node_slots(k_pages, up, page_offsets.tolist(), page_ids.tolist(), lengths.tolist())
    for i, leaf in enumerate(ends):
        if not -1 <= leaf < len(up):
            checks.fail("leaves", f"{leaf} at {i}", f"a node, 0 to {len(up) - 1}, or -1")
    k_flat, v_flat = k_pages.flatten(0, 1), v_pages.flatten(0, 1)
    group, scale = q.shape[1] // k_pages.shape[2], q.shape[2] ** -0.5 if scale is None else scale
    for i, node in enumerate(ends):
        path: list[int] = []
        while node >= 0:
            path = slots[node] + path
            node = up[node]
        if not path:
            continue
        seen = torch.tensor(path if window is None else path[-window:], device=q.device)
        k = k_flat[seen].to(state).repeat_interleave(group, dim=1)
        v = v_flat[seen].to(state).repeat_interleave(group, dim=1)
        scores = torch.einsum("hd,thd->ht", q[i].to(state), k) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        lse[i] = torch.logsumexp(scores, dim=1)
        out[i] = torch.einsum("ht,thd->hd", torch.softmax(scores, dim=1), v).to(q.dtype)
    return out, lse


def node_slots(
    k_pages: torch.Tensor,
    parents: list[int],
    page_offsets: list[int],
    page_ids: list[int],
    lengths: list[int],
) -> list[list[int]]:
    """Of each node the slots of its tokens in the pool, pages put end to end. Checks the tree."""
    pool, page_size = k_pages.shape[:2]
    nodes, slots = len(parents), []
    for i, (parent, length) in enumerate(zip(parents, lengths, strict=True)):
        if not -1 <= parent < nodes:
            checks.fail("parents", f"{parent} at {i}", f"-1 for a root, or 0 to {nodes - 1}")
        first, last = page_offsets[i], page_offsets[i + 1]
        if not 0 <= first <= last <= len(page_ids):
            checks.fail(
                "page_offsets", f"{first}, {last} at {i}", f"ascending, 0 to {len(page_ids)}"
            )
        if not 0 <= length <= (last - first) * page_size:
            checks.fail("lengths", f"{length} at {i}", f"0 to {(last - first) * page_size}")
        pages = page_ids[first : first - (-length // page_size)]
        for page in pages:
            if not 0 <= page < pool:
                checks.fail("page_ids", f"{page} for node {i}", f"a page, 0 to {pool - 1}")
        slots.append([pages[t // page_size] * page_size + t % page_size for t in range(length)])
    for i, parent in enumerate(parents):
        for _ in range(nodes):
            parent = parents[parent] if parent >= 0 else -1
        if parent >= 0:
            checks.fail("parents", f"{parents[i]} at {i}", "a forest, but it leads to a cycle")
    return slots


def native(
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
    n, hq, d = q.shape
    out, lse = q.new_empty(n, hq, d), q.new_empty((n, hq), dtype=torch.float32)
    _C.prefix_tree_attention(
        q,
        k_pages,
        v_pages,
        parents,
        page_offsets,
        page_ids,
        lengths,
        leaves,
        scale,
        window,
        softcap,
        out,
        lse,
        torch.get_num_threads(),
    )
    return out, lse


ON_GPU = ("triton", "cuda")
_op = register(
    "prefix_tree_attention(Tensor q, Tensor k_pages, Tensor v_pages, Tensor parents, "
    "Tensor page_offsets, Tensor page_ids, Tensor lengths, Tensor leaves, *, Tensor[]? plan=None, "
    "float? scale=None, int? window=None, float? softcap=None, str? impl=None) -> (Tensor, Tensor)",
    check=check,
    fake=fake,
    impls={
        "reference": Implementation(reference, device=None),
        "native": Implementation(native, device="cpu"),
        "triton": triton("prefix_tree_attention"),
    },
).call
