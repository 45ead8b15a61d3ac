"""The tree a forward pass attends over, as the ops want it, built from the cache's arrays."""

from __future__ import annotations

import numpy as np
import torch

from ..prefix_tree import PrefixTree
from .cache import Ints, PathCache, pages_for, ragged


class TreeBuilder:
    """Keeps the parts of the tree that stay as they are while paths grow within their pages."""

    def __init__(self, cache: PathCache, device: torch.device) -> None:
        self.cache, self.device = cache, device
        self._structure = -1
        self._parents = self._counts = self._page_ids = np.empty(0, np.int64)
        self._last: PrefixTree | None = None  # of `steps`

    def _refresh(self) -> None:
        cache = self.cache
        if self._structure == cache.structure:
            return
        self._parents = cache.parent.copy()
        self._counts = pages_for(cache.length, cache.page_size)
        rows, columns = ragged(self._counts)
        self._page_ids = cache.table[rows, columns].astype(np.int64)
        self._structure = cache.structure

    def steps(self, leaves: Ints, padding: int) -> PrefixTree:
        """The tree for rows that stand at the end of their paths: row i attends to all of
        leaves[i].

        `padding` rows that attend to nothing follow.
        """
        self._refresh()
        parts = self._parents, self._counts, self._page_ids, self.cache.length
        tree = self._tree(*parts, leaves, padding)
        if self._last is not None:
            tree.follow(self._last)
        self._last = tree
        return tree

    def runs(self, leaves: Ints, positions: Ints, padding: int) -> tuple[PrefixTree, Ints]:
        """The tree for rows at any `positions` of paths, and the rows' slots in the pool.

        A row attends to its path up to its position: to the pages before its own, a chain of one
        node a page, and to its own page as a node of its own that ends at the row. So causal
        attention is tree attention, and a token has the bits it has when it is decoded.
        """
        self._refresh()
        cache, ps = self.cache, self.cache.page_size
        nodes = self._nodes_at(leaves, positions)
        page, offset = (positions - cache.start[nodes]) // ps, (positions - cache.start[nodes]) % ps
        ids = cache.table[nodes, page].astype(np.int64)
        # one link for each page that a row stands in: what lies before that page, as a node
        pairs, first, link_of = np.unique(
            np.stack([nodes, page]), axis=1, return_index=True, return_inverse=True
        )
        links = pairs.shape[1]
        base = self._parents.size
        above = np.flatnonzero(
            (pairs[0, 1:] == pairs[0, :-1]) & (pairs[1, 1:] == pairs[1, :-1] + 1)
        )
        chained = np.zeros(links, bool)
        chained[above + 1] = True
        # a link holds one page, or for the first of a chain all pages of its node before it
        link_counts = np.where(chained, 1, pairs[1])
        link_parents = np.where(chained, base + np.arange(links) - 1, self._parents[pairs[0]])
        rows, columns = ragged(link_counts)
        link_pages = cache.table[
            pairs[0, rows], np.where(chained[rows], pairs[1, rows] - 1, columns)
        ]
        tree = self._tree(
            np.concatenate([self._parents, link_parents, base + link_of.reshape(-1)]),
            np.concatenate([self._counts, link_counts, np.ones_like(ids)]),
            np.concatenate([self._page_ids, link_pages, ids]),
            np.concatenate([cache.length, link_counts * ps, offset + 1]),
            base + links + np.arange(ids.size),
            padding,
        )
        return tree, ids * ps + offset

    def _nodes_at(self, leaves: Ints, positions: Ints) -> Ints:
        """The node of each path that holds a position."""
        nodes = leaves.copy()
        while (above := positions < self.cache.start[nodes]).any():
            nodes = np.where(above, self.cache.parent[nodes], nodes)
        return nodes

    def _tree(
        self, parents: Ints, counts: Ints, page_ids: Ints, lengths: Ints, leaves: Ints, padding: int
    ) -> PrefixTree:
        offsets = np.concatenate([[0], np.cumsum(counts)])
        leaves = np.concatenate([leaves, np.full(padding, -1)])
        packed = (parents, offsets, page_ids, lengths, leaves)
        sizes = [part.size for part in packed]
        host = torch.from_numpy(np.concatenate(packed))
        there = host.to(self.device, non_blocking=True)  # of pageable memory: read at once
        up, starts, ids, tokens, ends = there.split_with_sizes(sizes)
        known = None if self.device.type == "cpu" else tuple(host.split_with_sizes(sizes))
        return PrefixTree.from_tensors(up, starts, ids, tokens, ends, self.cache.page_size, known)
