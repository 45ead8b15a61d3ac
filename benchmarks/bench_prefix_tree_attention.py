"""prefix_tree_attention: one decode step over trees of paged tokens."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from pyttc import PrefixTree, prefix_tree_attention

from .common import rotating

PAGE_SIZE = 16


def cases() -> Iterator[dict[str, Any]]:
    yield case((1, 64), (4096, 64), 14, 2, 64)
    yield case((1, 4, 16, 64), (1024, 256, 128, 32), 14, 2, 64)
    yield case((1, 8, 64), (2048, 512, 256), 32, 8, 128)
    yield case((16,), (2048,), 14, 2, 64)


def case(
    widths: tuple[int, ...] = (1, 64),
    lengths: tuple[int, ...] = (4096, 64),
    heads: int = 14,
    kv_heads: int = 2,
    d: int = 64,
) -> dict[str, Any]:
    """widths[i] nodes on level i, each of lengths[i] tokens; the last level's are the paths."""
    parents, node_lengths, above = [], [], []
    for width, length in zip(widths, lengths, strict=True):
        level = range(len(parents), len(parents) + width)
        parents += [above[i * len(above) // width] if above else -1 for i in range(width)]
        node_lengths += [length] * width
        above = list(level)
    n, tokens, path = widths[-1], sum(node_lengths), sum(lengths)
    counts = [-(-length // PAGE_SIZE) for length in node_lengths]
    ids = torch.randperm(sum(counts))
    tree = PrefixTree(parents, list(ids.split(counts)), node_lengths, above, PAGE_SIZE)

    def make() -> tuple[torch.Tensor, ...]:
        q, pages = torch.randn(n, heads, d), torch.randn(2, sum(counts), PAGE_SIZE, kv_heads, d)
        return q.bfloat16(), *pages.bfloat16()

    def check() -> bool:
        q, k, v = make()
        out, lse = prefix_tree_attention(q, k, v, tree)
        right, right_lse = prefix_tree_attention(
            q.double(), k.double(), v.double(), tree, impl="reference"
        )
        return bool(
            ((out - right).abs() <= 2e-3 + 2**-8 * right.abs()).all()
            and ((lse - right_lse).abs() <= 1e-4).all()
        )

    def expanded() -> torch.Tensor:
        return scaled_dot_product_attention(*apart, enable_gqa=True)

    nbytes = 4 * tokens * kv_heads * d + 4 * n * heads * d
    next_args = rotating(make, nbytes)
    apart = [
        torch.randn(n, h, t, d).bfloat16()
        for h, t in ((heads, 1), (kv_heads, path), (kv_heads, path))
    ]
    return {
        "op": "prefix_tree_attention",
        "shape": {"widths": widths, "lengths": lengths, "Hq": heads, "Hkv": kv_heads, "D": d},
        "dtype": "bfloat16",
        "run": lambda: prefix_tree_attention(*next_args(), tree),
        "check": check,
        "bytes": nbytes,
        "written": n * heads * (2 * d + 4),
        "flops": 4 * n * heads * path * d,
        "peers": {"torch SDPA, expanded KV": expanded},
    }
