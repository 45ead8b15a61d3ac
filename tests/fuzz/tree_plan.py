"""Plans of any trees, one after the other: refused, or the lists that a fresh plan makes."""

from __future__ import annotations

import torch

from pyttc.tree_plan import TreePlan
from tests.fuzz import Reader

SEEDS = (b"", bytes(range(120)), b"\x03" * 90, b"\x01\x02\x02\x01" * 30)


def tree(reader: Reader) -> list[torch.Tensor]:
    nodes = reader.below(6)
    counts = [reader.below(12) for _ in range(nodes)]
    offsets = [sum(counts[:i]) for i in range(nodes + 1)]
    listed = [
        reader.below(40) if reader.below(16) else reader.integer() for _ in range(sum(counts))
    ]
    parents = [
        reader.below(i + 1) - 1 if reader.below(16) else reader.integer() for i in range(nodes)
    ]
    return [
        torch.tensor(values, dtype=torch.int64)
        for values in (
            parents,
            offsets if reader.below(8) else [reader.integer() for _ in range(nodes + 1)],
            listed,
            [reader.take(1)[0] if reader.below(8) else reader.integer() for _ in range(nodes)],
            [
                reader.below(nodes + 1) - 1 if reader.below(8) else reader.integer()
                for _ in range(5)
            ],
        )
    ]


def target(data: bytes) -> None:
    reader = Reader(data)
    page_size, paths = (1, 3, 16, 64, 256)[reader.below(5)], 1 + reader.below(8)
    plan, last = TreePlan(page_size, paths, "cpu"), None
    for _ in range(4):
        given = last if last is not None and reader.below(2) else tree(reader)
        if given is last:  # only grown
            given = [part.clone() for part in given]
            if given[3].numel():
                given[3][reader.below(given[3].numel())] += reader.below(9)
        last = given
        lists = []
        for each in (plan, TreePlan(page_size, paths, "cpu")):
            try:
                lists.append([part.clone() for part in each.fill(tuple(given))])
            except ValueError:
                lists.append(None)
        kept, fresh = lists
        assert (kept is None) == (fresh is None), given
        if kept is not None:
            # the grown plan may list its steps in another order
            assert [part.shape for part in kept] == [part.shape for part in fresh], given
            assert torch.equal(kept[3], fresh[3]), given
