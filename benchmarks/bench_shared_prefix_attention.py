"""shared_prefix_attention: one decode step of N paths with one prefix."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from pyttc import shared_prefix_attention

from .common import rotating

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def cases() -> Iterator[dict[str, Any]]:
    for dtype in (torch.bfloat16, torch.float32):
        yield case(64, 14, 2, 64, 4096, 64, dtype)
    yield case(1, 14, 2, 64, 4096, 64, torch.bfloat16)
    yield case(16, 32, 8, 128, 2048, 128, torch.bfloat16)
    yield case(64, 12, 4, 64, 128, 256, torch.bfloat16)


def case(
    n: int = 64,
    heads: int = 14,
    kv_heads: int = 2,
    d: int = 64,
    prefix: int = 4096,
    suffix: int = 64,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    tokens, width = prefix + n * suffix, dtype.itemsize
    lens = torch.full((1, n), suffix, dtype=torch.int32)
    written = n * heads * (d * width + 4)

    def make() -> tuple[torch.Tensor, ...]:
        q = torch.randn(1, n, heads, d)
        kv = (torch.randn(1, prefix, kv_heads, d) for _ in range(2))
        own = (torch.randn(1, n, suffix, kv_heads, d) for _ in range(2))
        return *(t.to(dtype) for t in (q, *kv, *own)), lens

    def expand(args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Every path with keys and values of its own, as [N, heads, tokens, D]."""
        q, k, v, own_k, own_v, _ = args
        k = torch.cat([k.expand(n, -1, -1, -1), own_k[0]], 1).transpose(1, 2).contiguous()
        v = torch.cat([v.expand(n, -1, -1, -1), own_v[0]], 1).transpose(1, 2).contiguous()
        return q.transpose(0, 1).transpose(1, 2), k, v

    def check() -> bool:
        args = make()
        out, lse = shared_prefix_attention(*args)
        exact = (*(t.double() for t in args[:5]), lens)
        right, right_lse = shared_prefix_attention(*exact, impl="reference")
        tolerance = 1e-5 if dtype is torch.float32 else 2e-3
        return bool(
            ((out - right).abs() <= tolerance + 2**-8 * right.abs()).all()
            and ((lse - right_lse).abs() <= 1e-4).all()
        )

    def expanded() -> torch.Tensor:
        return scaled_dot_product_attention(*apart, enable_gqa=True)

    def view() -> torch.Tensor:
        """The prefix alone, every path seeing it through a stride of 0."""
        q, k, v = next_args()[:3]
        k, v = (t.expand(n, -1, -1, -1).transpose(1, 2) for t in (k, v))
        return scaled_dot_product_attention(q.view(n, heads, 1, d), k, v, enable_gqa=True)

    def cascade() -> torch.Tensor:
        """Prefix with all queries as rows, suffixes, and a merge by log-sum-exp."""
        q, k, v, own_k, own_v, _ = next_args()
        group = heads // kv_heads
        grouped = q.view(n, kv_heads, group, d)
        rows = grouped.transpose(0, 1).reshape(1, kv_heads, n * group, d)
        a, lse_a = flash(rows, k.transpose(1, 2), v.transpose(1, 2))
        b, lse_b = flash(grouped, own_k[0].transpose(1, 2), own_v[0].transpose(1, 2))
        a, lse_a = (t.view(kv_heads, n, group, -1).transpose(0, 1) for t in (a, lse_a))
        lse_b = lse_b.view(n, kv_heads, group, 1)
        lse = torch.logaddexp(lse_a, lse_b)
        return (a * (lse_a - lse).exp() + b * (lse_b - lse).exp()).to(dtype)

    nbytes = 2 * tokens * kv_heads * d * width + 2 * n * heads * d * width
    next_args, apart = rotating(make, nbytes), expand(make())
    return {
        "op": "shared_prefix_attention",
        "shape": {"N": n, "Hq": heads, "Hkv": kv_heads, "D": d, "P": prefix, "S": suffix},
        "dtype": str(dtype).removeprefix("torch."),
        "run": lambda: shared_prefix_attention(*next_args()),
        "check": check,
        "bytes": nbytes,
        "written": written,
        "flops": 4 * n * heads * (prefix + suffix) * d,
        "peers": {
            "torch SDPA, expanded KV": expanded,
            "torch SDPA, prefix as a view, no suffix": view,
            "torch flash twice and merge": cascade,
        },
    }
