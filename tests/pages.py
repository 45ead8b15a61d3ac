"""What must hold of the pages of a cache at all times, whatever happened to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyttc.engine.cache import ROOT, Ints, PathCache, pages_for, ragged


def check_pages(cache: PathCache, leaves: Ints) -> Ints:
    """Every page is free, or held by one node; every node by paths that end in `leaves`, or by nodes
    below it. Returns the free pages."""
    live = np.zeros(cache.refs.size, bool)
    nodes = leaves
    while nodes.size:
        nodes = np.unique(nodes[(nodes != ROOT) & ~live[nodes]])
        live[nodes] = True
        nodes = cache.parent[nodes]
    nodes = np.flatnonzero(live)
    assert cache.nodes == nodes.size + 1
    refs = np.bincount(leaves, minlength=live.size) + np.bincount(
        cache.parent[nodes], minlength=live.size
    )
    refs[ROOT] = cache.refs[ROOT]  # nobody counts those of the root
    assert np.array_equal(cache.refs[live], refs[live])
    above = cache.parent[nodes]
    assert np.array_equal(cache.start[nodes], cache.start[above] + cache.length[above])
    assert not (cache.start[nodes] % cache.page_size).any()
    rows, columns = ragged(pages_for(cache.length[nodes], cache.page_size))
    held = cache.table[nodes[rows], columns]
    free = cache._free_pages[: cache.free_pages]
    both = np.concatenate([held, free])
    assert both.size == cache.pages == np.unique(both).size
    assert set(cache._known) <= set(nodes.tolist())
    return free.astype(np.int64)


def check_engine(engine: Any, *alive: Any) -> None:
    """`check_pages` for an engine of which nothing but these Paths exists. The free pages are then filled
    with NaN: what is read from one shows."""
    engine.collect()
    leaves = np.concatenate([np.zeros(0, np.int64), *(paths.leaves for paths in alive)])
    free = check_pages(engine.cache, leaves)
    engine.pool.k[:, free] = engine.pool.v[:, free] = float("nan")
