"""prefix_tree_attention over any page table: refused by native and reference alike, or the same result."""

from __future__ import annotations

import torch

import pyttc
from tests.fuzz import Reader

SEEDS = (b"", bytes(range(100)), b"\x01\x02" + b"\x01" * 60, b"\x02" * 80)
PAGES, DIM = 5, 16
MAKE = torch.Generator().manual_seed(0)
POOLS = {size: torch.randn(2, PAGES, size, 1, DIM, generator=MAKE) for size in (1, 3, 16)}
QUERIES = torch.randn(8, 2, DIM, generator=MAKE)


def target(data: bytes) -> None:
    reader = Reader(data)
    size = (1, 3, 16)[reader.below(3)]
    dtype = (torch.int32, torch.int64)[reader.below(2)]

    def ints(values: list[int]) -> torch.Tensor:
        bound = torch.iinfo(dtype)
        return torch.tensor([min(max(v, bound.min), bound.max) for v in values], dtype=dtype)

    nodes = reader.below(6)
    counts = [reader.below(4) for _ in range(nodes)]
    offsets = [sum(counts[:i]) for i in range(nodes + 1)]
    table = [
        ints([reader.integer() for _ in range(nodes)]),
        ints(offsets if reader.below(4) else [reader.integer() for _ in range(nodes + 1)]),
        ints(
            [
                reader.below(PAGES) if reader.below(8) else reader.integer()
                for _ in range(sum(counts))
            ]
        ),
        ints([reader.integer() for _ in range(nodes)]),
        ints(reader.integers(8)),
    ]
    tree = pyttc.PrefixTree.from_tensors(*table, size)
    q = QUERIES[: len(table[4])]
    results = []
    for impl in ("native", "reference"):
        try:
            results.append(pyttc.prefix_tree_attention(q, *POOLS[size], tree, impl=impl))
        except ValueError:
            results.append(None)
    native, reference = results
    assert (native is None) == (reference is None), table
    if native is not None:
        for got, wanted in zip(native, reference, strict=True):
            assert torch.allclose(got, wanted, atol=1e-5), table
