"""store_kv: a decoding step's rows, each to another page, and a prompt's rows, page after page."""

from collections.abc import Iterator
from typing import Any

import torch

from pyttc import store_kv

from .common import rotating

PAGE_SIZE = 16


def cases() -> Iterator[dict[str, Any]]:
    for n, heads, d in ((64, 2, 64), (1024, 8, 128)):
        yield case("decode", n, heads, d)
    yield case("prefill", 4096, 8, 128)


def case(step: str = "decode", n: int = 64, kv_heads: int = 2, d: int = 64) -> dict[str, Any]:
    if step not in ("decode", "prefill"):
        raise ValueError(f"step: got {step!r}, expected decode or prefill")
    pages = n if step == "decode" else n // PAGE_SIZE
    moved = 2 * n * kv_heads * d * 2

    def make() -> tuple[torch.Tensor, ...]:
        k, v = torch.randn(2, n, kv_heads, d).bfloat16()
        k_pages, v_pages = torch.zeros(2, pages, PAGE_SIZE, kv_heads, d, dtype=torch.bfloat16)
        if step == "decode":
            slots = torch.randperm(pages) * PAGE_SIZE + 5
        else:
            slots = (torch.randperm(pages)[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).flatten()
        return k, v, k_pages, v_pages, slots

    def check() -> bool:
        k, v, k_pages, v_pages, slots = make()
        store_kv(k, v, k_pages, v_pages, slots)
        written = k_pages.flatten(0, 1)[slots], v_pages.flatten(0, 1)[slots]
        return torch.equal(written[0], k) and torch.equal(written[1], v)

    def index_copy() -> None:
        k, v, k_pages, v_pages, slots = next_args()
        k_pages.flatten(0, 1).index_copy_(0, slots, k)
        v_pages.flatten(0, 1).index_copy_(0, slots, v)

    def index_put() -> None:
        k, v, k_pages, v_pages, slots = next_args()
        k_pages.flatten(0, 1)[slots] = k
        v_pages.flatten(0, 1)[slots] = v

    next_args = rotating(make, 2 * moved)
    return {
        "op": "store_kv",
        "shape": {"step": step, "n": n, "kv_heads": kv_heads, "d": d, "page_size": PAGE_SIZE},
        "dtype": "bfloat16",
        "run": lambda: store_kv(*next_args()),
        "check": check,
        "bytes": 2 * moved,
        "written": moved,
        "flops": 0,
        "peers": {"torch index_copy_": index_copy, "torch index_put_": index_put},
    }
