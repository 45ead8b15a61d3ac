"""Several forests served one after another by one plan of fixed capacity, in the same memory, as a captured
graph has it; for a GPU and for Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import pyttc
from pyttc.tree_plan import TreePlan, capacity_for, paths_of

from .forests import Forest


@dataclass
class Planned:
    pools: list[tuple[torch.Tensor, torch.Tensor, pyttc.PrefixTree, torch.Tensor]]
    plan: TreePlan
    q: torch.Tensor
    k_pages: torch.Tensor
    v_pages: torch.Tensor

    def fill(self, i: int) -> None:
        k, v, tree, q = self.pools[i]
        self.lists = self.plan.fill(tree.host())
        self.q.copy_(q)
        self.k_pages[: len(k)], self.v_pages[: len(v)] = k, v

    def call(self) -> tuple[torch.Tensor, torch.Tensor]:
        none = torch.zeros(0, dtype=torch.int32, device=self.q.device)
        ends = torch.zeros(len(self.q), dtype=torch.int32, device=self.q.device)
        parts = none, ends[:1], none, none, ends
        op = torch.ops.pyttc.prefix_tree_attention
        return op(self.q, self.k_pages, self.v_pages, *parts, plan=self.lists, impl="triton")

    def expected(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        k, v, tree, q = self.pools[i]
        return pyttc.prefix_tree_attention(q, k, v, tree, impl="triton")


def planned_forests(device: str) -> Planned:
    """Two forests, and the first with every leaf that has tokens and no children longer by 3."""
    forests = [Forest.draw(seed, torch.bfloat16, heads=(8, 2), dim=64) for seed in (3, 4)]
    paths = max(len(forest.leaves) for forest in forests)
    for forest in forests:
        forest.leaves += [forest.leaves[0]] * (paths - len(forest.leaves))
        forest.q = forests[0].q[[i % len(forests[0].q) for i in range(paths)]]
    pools = []
    for forest in forests:
        k, v, tree = forest.paged(16)
        pools.append((k, v, tree, forest.q))
    k, v, tree, q = pools[0]
    up, offsets, ids, lengths, leaves = tree.host()
    inner = set(up.tolist())
    longer = lengths.clone()
    for i, length in enumerate(lengths.tolist()):
        room = int(offsets[i + 1] - offsets[i]) * 16
        if length and i not in inner:
            longer[i] = min(length + 3, room)
    assert not torch.equal(longer, lengths)
    grown = pyttc.PrefixTree.from_tensors(up, offsets, ids, longer, leaves, 16)
    pools.append((k.nan_to_num(0.5), v.nan_to_num(0.5), grown, q))
    key = (16, paths_of(4, torch.bfloat16), device)
    capacities = [capacity_for(TreePlan(16, key[1], "cpu").fill(t.host())) for _, _, t, _ in pools]
    capacity = type(capacities[0])(
        *(max(c[i] for c in capacities) for i in range(3)), min(c.granule for c in capacities)
    )
    pages = max(len(k) for k, *_ in pools)
    shape = (pages, *pools[0][0].shape[1:])
    pools = [(k.to(device), v.to(device), t.to(device), q.to(device)) for k, v, t, q in pools]
    pool = [torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in range(2)]
    return Planned(pools, TreePlan(*key, capacity), torch.empty_like(pools[0][3]), *pool)
