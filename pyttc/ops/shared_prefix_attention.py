"""shared_prefix_attention: one decode step of groups of paths that share a prefix."""

from __future__ import annotations

import torch

from .. import _C
from ..dispatch import Implementation, register, triton
from . import checks


def shared_prefix_attention(
    q: torch.Tensor,
    k_prefix: torch.Tensor,
    v_prefix: torch.Tensor,
    k_suffix: torch.Tensor,
    v_suffix: torch.Tensor,
    suffix_lens: torch.Tensor,
    *,
    prefix_lens: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One decode step of attention for G groups of N paths; a group's paths share one prefix.

    Path n of group g attends to the first prefix_lens[g] tokens of its group's prefix and the first
    suffix_lens[g, n] tokens of its own suffix. With K, V those tokens' keys and values for KV head
    h // (Hq // Hkv)::

        s = scale * K @ q[g, n, h]      lse[g, n, h] = log(sum(exp(s)))
        out[g, n, h] = exp(s - lse[g, n, h]) @ V

    The prefix is read once for all of a group's paths and query heads, and sharing never changes a
    result: the native kernel gives the same bits wherever prefix ends and suffix begins, whatever
    the other paths and groups, the strides and the number of threads.

    Args:
        q: [G, N, Hq, D], float32, bfloat16 or float16 (float64 with the reference). D is a
            multiple of 8 from 16 to 256. G is at most 65,535 with "triton".
        k_prefix, v_prefix: [G, P, Hkv, D], like q; Hkv divides Hq.
        k_suffix, v_suffix: [G, N, S, Hkv, D], like q.
        suffix_lens: [G, N], int32 or int64, each from 0 to S. Tokens past a length are never read:
            they may hold anything, NaN included.
        prefix_lens: [G], int32 or int64, each from 0 to P; None: P for all.
        scale: 1 / sqrt(D) by default.
        impl: None, "reference", "native" or "triton" (see `pyttc.explain`).

    Any stride is served but the last dimension's, which must be 1.

    Returns:
        (out, lse): out [G, N, Hq, D] like q; lse [G, N, Hq] float32 (float64 for float64), natural
        log. A path without tokens has out 0 and lse -inf.

    Sums are float32. GPUs, and processors that multiply pairs of bfloat16, round exp(s - max(s)) to
    q's dtype before it meets V, as torch's own kernels do; lse knows nothing of it.

    Raises:
        ValueError, TypeError: for an argument of another shape, dtype, stride or device, or a
            length out of range, before anything is written.

    Source: Hydragen (arXiv 2402.05099); the tile states, online softmax (arXiv 1805.02867).
    """
    out, lse = _op(
        q,
        k_prefix,
        v_prefix,
        k_suffix,
        v_suffix,
        suffix_lens,
        prefix_lens=prefix_lens,
        scale=scale,
        impl=impl,
    )
    return out, lse


def check(
    q: torch.Tensor,
    k_prefix: torch.Tensor,
    v_prefix: torch.Tensor,
    k_suffix: torch.Tensor,
    v_suffix: torch.Tensor,
    suffix_lens: torch.Tensor,
    *,
    prefix_lens: torch.Tensor | None = None,
    scale: float | None = None,
) -> None:
    dtype, shape, device = q.dtype, q.shape, q.device
    if len(shape) != 4:
        checks.fail_shape("q", q, "[G, N, Hq, D]")
    g, n, hq, d = shape
    if dtype not in checks.FLOATS:
        checks.fail_dtype("q", q, checks.FLOAT_NAMES)
    if d % 8 or not 16 <= d <= 256:
        checks.fail_shape("q", q, "a last dimension that is a multiple of 8 from 16 to 256")
    prefix = k_prefix.shape
    if len(prefix) != 4 or prefix[0] != g or prefix[3] != d:
        checks.fail_shape("k_prefix", k_prefix, f"[{g}, P, Hkv, {d}], with q's G and D")
    hkv = prefix[2]
    if hkv < 1 or hq % hkv:
        checks.fail_shape("k_prefix", k_prefix, f"a number of heads that divides q's {hq}")
    if v_prefix.shape != prefix:
        checks.fail_shape("v_prefix", v_prefix, f"{list(prefix)}, as k_prefix")
    suffix = k_suffix.shape
    if len(suffix) != 5 or suffix[0] != g or suffix[1] != n or suffix[3] != hkv or suffix[4] != d:
        checks.fail_shape("k_suffix", k_suffix, f"[{g}, {n}, S, {hkv}, {d}]")
    if v_suffix.shape != suffix:
        checks.fail_shape("v_suffix", v_suffix, f"{list(suffix)}, as k_suffix")
    if k_prefix.dtype is not dtype:
        checks.fail_dtype("k_prefix", k_prefix, f"{dtype}, as q")
    if v_prefix.dtype is not dtype:
        checks.fail_dtype("v_prefix", v_prefix, f"{dtype}, as q")
    if k_suffix.dtype is not dtype:
        checks.fail_dtype("k_suffix", k_suffix, f"{dtype}, as q")
    if v_suffix.dtype is not dtype:
        checks.fail_dtype("v_suffix", v_suffix, f"{dtype}, as q")
    if suffix_lens.shape != shape[:2]:
        checks.fail_shape("suffix_lens", suffix_lens, f"[{g}, {n}]")
    if suffix_lens.dtype not in checks.INTS:
        checks.fail_dtype("suffix_lens", suffix_lens, "int32 or int64")
    if prefix_lens is not None:
        if prefix_lens.shape != shape[:1]:
            checks.fail_shape("prefix_lens", prefix_lens, f"[{g}]")
        if prefix_lens.dtype not in checks.INTS:
            checks.fail_dtype("prefix_lens", prefix_lens, "int32 or int64")
        if prefix_lens.device != device:
            checks.fail_device(device, prefix_lens=prefix_lens)
    if not (
        device == k_prefix.device == v_prefix.device == k_suffix.device == v_suffix.device
        and device == suffix_lens.device
    ):
        checks.fail_device(
            device,
            k_prefix=k_prefix,
            v_prefix=v_prefix,
            k_suffix=k_suffix,
            v_suffix=v_suffix,
            suffix_lens=suffix_lens,
        )
    if not (
        q.stride(3) == 1
        and k_prefix.stride(3) == 1
        and v_prefix.stride(3) == 1
        and k_suffix.stride(4) == 1
        and v_suffix.stride(4) == 1
    ):
        checks.fail_stride(
            q=q, k_prefix=k_prefix, v_prefix=v_prefix, k_suffix=k_suffix, v_suffix=v_suffix
        )
    if scale is not None and not abs(scale) < torch.inf:
        checks.fail("scale", scale, "a finite number")


def fake(
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
    g, n, hq, d = q.shape
    state = torch.float64 if q.dtype is torch.float64 else torch.float32
    return q.new_empty(g, n, hq, d), q.new_empty((g, n, hq), dtype=state)


def reference(
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
    out, lse = fake(q, k_prefix, v_prefix, k_suffix, v_suffix, suffix_lens)
    p_max, s_max = k_prefix.shape[1], k_suffix.shape[2]
    prefixes = [p_max] * q.shape[0] if prefix_lens is None else prefix_lens.tolist()
    suffixes = suffix_lens.tolist()
    for g, p in enumerate(prefixes):
        if not 0 <= p <= p_max:
            checks.fail("prefix_lens", f"{p} at {g}", f"0 to {p_max}, k_prefix's tokens")
        for n, s in enumerate(suffixes[g]):
            if not 0 <= s <= s_max:
                checks.fail("suffix_lens", f"{s} at {g}, {n}", f"0 to {s_max}, k_suffix's tokens")
    group = q.shape[2] // k_prefix.shape[2]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    for g, p in enumerate(prefixes):
        for n, s in enumerate(suffixes[g]):
            k = torch.cat([k_prefix[g, :p], k_suffix[g, n, :s]]).to(lse.dtype)
            v = torch.cat([v_prefix[g, :p], v_suffix[g, n, :s]]).to(lse.dtype)
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            scores = torch.einsum("hd,thd->ht", q[g, n].to(lse.dtype), k) * scale
            lse[g, n] = torch.logsumexp(scores, dim=1)
            out[g, n] = torch.einsum("ht,thd->hd", torch.softmax(scores, dim=1), v).to(q.dtype)
    return out, lse


def native(
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
    g, n, hq, d = q.shape
    out, lse = q.new_empty(g, n, hq, d), q.new_empty((g, n, hq), dtype=torch.float32)
    _C.shared_prefix_attention(
        q,
        k_prefix,
        v_prefix,
        k_suffix,
        v_suffix,
        suffix_lens,
        prefix_lens,
        scale,
        out,
        lse,
        torch.get_num_threads(),
    )
    return out, lse


_op = register(
    "shared_prefix_attention(Tensor q, Tensor k_prefix, Tensor v_prefix, Tensor k_suffix, "
    "Tensor v_suffix, Tensor suffix_lens, *, Tensor? prefix_lens=None, float? scale=None, "
    "str? impl=None) -> (Tensor, Tensor)",
    check=check,
    fake=fake,
    impls={
        "reference": Implementation(reference, device=None),
        "native": Implementation(native, device="cpu"),
        "triton": triton("shared_prefix_attention"),
    },
).call
