"""The work list of prefix_tree_attention on a GPU: which query rows go through which tiles of tokens.

Paths are ranked depth first, so that those below a node are neighbours. An item is up to a program's rows of
neighbouring paths in one chunk of CHUNK tokens; a step of it is a tile of TILE tokens, which the ranks
in [first, last) share: those whose tokens in that tile are the same. Nothing here shows in a result's bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

TILE, CHUNK, ROWS, ROWS_FLOAT32 = 64, 512, 64, 16  # as in the kernels
MOST_STEPS = 12  # of an item, unless a single path has more

Ints = np.ndarray[Any, np.dtype[np.int64]]


def paths_of(group: int, dtype: torch.dtype) -> int:
    """How many paths' query heads of a KV head, `group` each, fit the rows of a program."""
    return max(1, (ROWS_FLOAT32 if dtype is torch.float32 else ROWS) // group)


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
    device: torch.device | None = None,
) -> list[torch.Tensor]:
    """int32 tensors: items (first rank, ranks, first step, steps, chunk), steps (tile, first rank, last
    rank), slots (TILE a step), paths by rank (path, length, first state); and one without elements
    that has a row a state, of which a path has one a chunk. `most_paths`: of an item.
    """
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
        first, count, before = 0, 0, (-1, -1)
        for rank, (n, length, _) in enumerate(paths):
            if length <= chunk * CHUNK:
                close(group, first, chunk)
                group, before = [], (-1, -1)
                continue
            end = min(length, (chunk + 1) * CHUNK)
            tip = forest.owner(leaves[n], end)
            owners = group[-1] if group and before == (tip, end) else forest.owners(tip, chunk, end)
            before = tip, end
            new = len(owners)
            if group:
                shared = sum(a == b for a, b in zip(owners, group[-1], strict=False))
                new -= shared
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
    made = [
        np.array(items, dtype=np.int32).reshape(-1, 5),
        table[:, :3].astype(np.int32),
        slots.astype(np.int32),
        np.array(paths, dtype=np.int32).reshape(-1, 3),
    ]
    tensors = [torch.from_numpy(part).to(device) for part in made]
    return [*tensors, torch.empty(states, 0, device=device)]
