"""The tree of a pass over tokens at any positions: what each row attends to is its path up to there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttc.engine.cache import ROOT, Ints, PathCache
from pyttc.engine.tree import TreeBuilder
from pyttc.ops.prefix_tree_attention import node_slots
from pyttc.prefix_tree import PrefixTree
from tests.common import EXAMPLES

PAGE_SIZE, PAGES = 4, 400


def grown(rng: np.random.Generator) -> tuple[PathCache, Ints]:
    """A cache and the leaves of some of its paths, which have forked and grown."""
    cache = PathCache(PAGES, PAGE_SIZE)
    tokens = rng.integers(0, 9, 1 + rng.integers(30)).astype(np.int32)
    leaf = cache.new(tokens)[0]
    leaves: Ints = cache.write(np.array([leaf]), np.array([tokens.size])).leaves
    for _ in range(rng.integers(4)):
        times = rng.integers(1, 3, leaves.size)
        cache.share(leaves, times - 1)
        leaves = np.repeat(leaves, times)
        leaves = cache.write(leaves, rng.integers(0, 20, leaves.size)).leaves
    return cache, leaves


def attended(tree: PrefixTree) -> list[list[int]]:
    """The slots that each row attends to, first token first."""
    pages = torch.empty(PAGES, PAGE_SIZE, 1, 1)
    up = tree.parents.tolist()
    parts = (tree.page_offsets, tree.page_ids, tree.lengths)
    slots, found = node_slots(pages, up, *(t.tolist() for t in parts)), []
    for node in tree.leaves.tolist():
        seen: list[int] = []
        while node >= 0:
            seen, node = slots[node] + seen, up[node]
        found.append(seen)
    return found


def path(cache: PathCache, leaf: int, tokens: int) -> list[int]:
    """The slots of a path's first tokens."""
    node, slots = int(leaf), list[int]()
    while node != ROOT:
        offsets = np.arange(cache.length[node])
        pages = cache.table[node, offsets // PAGE_SIZE]
        slots = (pages * PAGE_SIZE + offsets % PAGE_SIZE).tolist() + slots
        node = int(cache.parent[node])
    return slots[:tokens]


@settings(max_examples=EXAMPLES, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_a_row_attends_to_its_path_up_to_its_position(seed: int, padding: int) -> None:
    rng = np.random.default_rng(seed)
    cache, leaves = grown(rng)
    builder, lengths = TreeBuilder(cache, torch.device("cpu")), cache.lengths(leaves)
    rows = rng.integers(0, leaves.size, 1 + rng.integers(30))
    at = rng.integers(0, lengths[rows])  # far apart, repeated, in no order
    tree, own = builder.runs(leaves[rows], at, padding)
    expected = [path(cache, leaf, n + 1) for leaf, n in zip(leaves[rows], at, strict=True)]
    assert attended(tree) == expected + [[]] * padding
    assert own.tolist() == [slots[-1] for slots in expected]
    whole = builder.steps(leaves, padding)
    expected = [path(cache, leaf, n) for leaf, n in zip(leaves, lengths, strict=True)]
    assert attended(whole) == expected + [[]] * padding


def test_what_has_changed_since_is_seen() -> None:
    cache, leaves = grown(np.random.default_rng(3))
    builder = TreeBuilder(cache, torch.device("cpu"))
    for count in (0, 1, PAGE_SIZE, 30):
        leaves = cache.write(leaves, np.full(leaves.size, count)).leaves
        lengths = cache.lengths(leaves)
        expected = [path(cache, leaf, n) for leaf, n in zip(leaves, lengths, strict=True)]
        assert attended(builder.steps(leaves, 0)) == expected


@pytest.mark.parametrize("padding", [0, 2])
def test_padding_attends_to_nothing(padding: int) -> None:
    cache, leaves = grown(np.random.default_rng(0))
    tree = TreeBuilder(cache, torch.device("cpu")).steps(leaves, padding)
    assert tree.leaves.tolist() == [*leaves.tolist(), *[-1] * padding]
