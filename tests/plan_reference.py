"""What csrc/cpu/tree_plan.cpp builds, written for the eye: the lists of a tree, one path after another."""

from __future__ import annotations

from typing import Any

import numpy as np

TILE, CHUNK = 64, 512  # as in the kernels
MOST_STEPS = 12  # of an item, unless a single path has more

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Forest:
    """Where each node's tokens stand in its paths, and which tokens a path's tiles have."""

    def __init__(self, parents: list[int], lengths: list[int]) -> None:
        children: list[list[int]] = [[] for _ in parents]
        stack: list[int] = []
        for node in reversed(range(len(parents))):
            (children[parents[node]] if parents[node] >= 0 else stack).append(node)
        self.parents = parents
        self.place, self.start, self.end = ([0] * len(parents) for _ in range(3))
        count = 0
        while stack:  # depth first
            node = stack.pop()
            self.place[node] = count
            count += 1
            self.start[node] = self.end[parents[node]] if parents[node] >= 0 else 0
            self.end[node] = self.start[node] + lengths[node]
            stack += children[node]

    def owner(self, node: int, end: int) -> int:
        """The node on the way up from `node` that holds the last token before position `end`."""
        while self.start[node] >= end:
            node = self.parents[node]
        return node

    def owners(self, tip: int, chunk: int, end: int) -> list[int]:
        """Of each tile of a chunk, up to position `end`, the node that holds its last token: it says which
        tokens the tile has, so paths that agree on it share the tile."""
        found = []
        for last in range(-(-end // TILE), chunk * CHUNK // TILE, -1):
            tip = self.owner(tip, min(last * TILE, end))
            found.append(tip)
        return found[::-1]


def steps_of(group: list[list[int]], chunk: int, first: int) -> list[tuple[int, int, int, int]]:
    """The steps (tile, first rank, last rank, owner) of neighbouring paths from rank `first` on."""
    steps = []
    for i in range(max(map(len, group))):
        rank = 0
        while rank < len(group):
            owner = group[rank][i] if i < len(group[rank]) else -1
            last = rank + 1
            while last < len(group) and (group[last][i] if i < len(group[last]) else -1) == owner:
                last += 1
            if owner >= 0:
                steps.append((chunk * CHUNK // TILE + i, first + rank, first + last, owner))
            rank = last
    return steps


def slots_of(
    forest: Forest, steps: Ints, page_offsets: list[int], page_ids: list[int], page_size: int
) -> Ints:
    """The pool slots of each step's tokens, [steps, TILE], -1 where there is none."""
    parents, start, end, offsets, ids = (
        np.array([*values, 0], dtype=np.int64)
        for values in (forest.parents, forest.start, forest.end, page_offsets, page_ids)
    )
    first, node = steps[:, 0] * TILE, steps[:, 3]
    slots = np.full((len(steps), TILE), -1, dtype=np.int64)
    at = np.arange(len(steps))
    while len(at):
        position = first[at, None] + np.arange(TILE)
        index = position - start[node, None]
        inside = (index >= 0) & (position < end[node, None])
        index[~inside] = 0
        page = ids[np.minimum(offsets[node, None] + index // page_size, len(ids) - 1)]
        slots[at] = np.where(inside, page * page_size + index % page_size, slots[at])
        above = start[node] > first[at]  # the tile begins in a node further up
        at, node = at[above], parents[node[above]]
    return slots


def build(
    parents: list[int],
    page_offsets: list[int],
    page_ids: list[int],
    lengths: list[int],
    leaves: list[int],
    page_size: int,
    most_paths: int,
) -> tuple[Ints, Ints, Ints, Ints, int]:
    """Items (first rank, ranks, first step, steps, chunk), steps (tile, first rank, last rank, tokens), slots
    (TILE a step, -1 for none), paths by rank (path, length, first state), states."""
    forest = Forest(parents, lengths)
    ranked = sorted(
        range(len(leaves)), key=lambda n: forest.place[leaves[n]] if leaves[n] >= 0 else -1
    )
    paths, states = [], 0
    for n in ranked:
        length = forest.end[leaves[n]] if leaves[n] >= 0 else 0
        paths.append((n, length, states))
        states += -(-length // CHUNK)
    items: list[tuple[int, int, int, int, int]] = []
    steps: list[tuple[int, int, int, int]] = []

    def close(group: list[list[int]], first: int, chunk: int) -> None:
        if group:
            new = steps_of(group, chunk, first)
            items.append((first, len(group), len(steps), len(new), chunk))
            steps.extend(new)

    longest = max((length for _, length, _ in paths), default=0)
    for chunk in range(-(-longest // CHUNK)):
        group: list[list[int]] = []
        first, count = 0, 0
        for rank, (n, length, _) in enumerate(paths):
            if length <= chunk * CHUNK:
                close(group, first, chunk)
                group = []
                continue
            end = min(length, (chunk + 1) * CHUNK)
            owners = forest.owners(forest.owner(leaves[n], end), chunk, end)
            new = len(owners)
            if group:
                new -= sum(a == b for a, b in zip(owners, group[-1], strict=False))
                if len(group) == most_paths or count + new > MOST_STEPS:
                    close(group, first, chunk)
                    group, new = [], len(owners)
            if not group:
                first, count = rank, 0
            group.append(owners)
            count += new
        close(group, first, chunk)

    table = np.array(steps, dtype=np.int64).reshape(-1, 4)
    slots = slots_of(forest, table, page_offsets, page_ids, page_size)
    ends = np.array([*forest.end, 0], dtype=np.int64)[table[:, 3]]
    table[:, 3] = np.minimum(TILE, ends - table[:, 0] * TILE)
    shapes = (items, 5), (paths, 3)
    rows, ranks = (np.array(rows, dtype=np.int64).reshape(-1, n) for rows, n in shapes)
    return rows, table, slots, ranks, states
