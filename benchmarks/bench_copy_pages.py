"""copy_pages: the partial page of every forked path, in every layer."""

from collections.abc import Iterator
from typing import Any

import torch

from pyttc import copy_pages

from .common import rotating


def cases() -> Iterator[dict[str, Any]]:
    for layers, forks, page_size, heads, d in ((24, 64, 16, 2, 64), (8, 256, 16, 8, 128)):
        yield case(layers, forks, page_size, heads, d)


def case(
    layers: int = 24, forks: int = 64, page_size: int = 16, kv_heads: int = 2, d: int = 64
) -> dict[str, Any]:
    pages, moved = 2 * forks, 2 * layers * forks * page_size * kv_heads * d * 2

    def make() -> tuple[torch.Tensor, ...]:
        k_pages, v_pages = torch.randn(2, layers, pages, page_size, kv_heads, d).bfloat16()
        src, dst = torch.randperm(pages).split(forks)
        return k_pages, v_pages, src, dst

    def check() -> bool:
        k_pages, v_pages, src, dst = make()
        copy_pages(k_pages, v_pages, src, dst)
        return all(torch.equal(pool[:, src], pool[:, dst]) for pool in (k_pages, v_pages))

    def index_copy() -> None:
        k_pages, v_pages, src, dst = next_args()
        k_pages.index_copy_(1, dst, k_pages.index_select(1, src))
        v_pages.index_copy_(1, dst, v_pages.index_select(1, src))

    def index_put() -> None:
        k_pages, v_pages, src, dst = next_args()
        k_pages[:, dst] = k_pages[:, src]
        v_pages[:, dst] = v_pages[:, src]

    next_args = rotating(make, 2 * moved)
    return {
        "op": "copy_pages",
        "shape": {
            "layers": layers,
            "pairs": forks,
            "page_size": page_size,
            "kv_heads": kv_heads,
            "d": d,
        },
        "dtype": "bfloat16",
        "run": lambda: copy_pages(*next_args()),
        "check": check,
        "bytes": 2 * moved,
        "written": moved,
        "flops": 0,
        "peers": {"torch index_copy_": index_copy, "torch index_put_": index_put},
    }
