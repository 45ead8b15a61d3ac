"""The work list of prefix_tree_attention on a GPU: which query rows go through which tiles of tokens.

Paths are ranked depth first, so that those below a node are neighbours. An item is up to a program's rows of
neighbouring paths in one chunk of CHUNK tokens; a step of it is a tile of TILE tokens, which the ranks
in [first, last) share: those whose tokens in that tile are the same. Nothing here shows in a result's bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

TILE, CHUNK, ROWS, ROWS_FLOAT32 = 64, 512, 64, 16  # as in the kernels
MOST_STEPS = 12  # of an item, unless a single path has more


@dataclass
class Node:
    parent: int
    start: int
    end: int
    pages: list[int]


@dataclass
class Work:
    """Rows of the plan's tensors: items (first rank, ranks, first step, steps, chunk), steps (tile, first
    rank, last rank), slots (TILE a step, -1 where there is no token), paths by rank (path, length, first
    state), and the number of states, one a path and chunk."""

    items: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    steps: list[tuple[int, int, int]] = field(default_factory=list)
    slots: list[list[int]] = field(default_factory=list)
    paths: list[tuple[int, int, int]] = field(default_factory=list)
    states: int = 0

    def tensors(self, device: torch.device) -> list[torch.Tensor]:
        """int32 tensors of the four lists, and an empty one with a row a state."""
        rows = (self.items, 5), (self.steps, 3), (self.slots, TILE), (self.paths, 3)
        made = [torch.tensor(r, dtype=torch.int32).reshape(-1, width) for r, width in rows]
        return [*(t.to(device) for t in made), torch.empty(self.states, 0, device=device)]


def paths_of(group: int, dtype: torch.dtype) -> int:
    """How many paths' query heads of a KV head, `group` each, fit the rows of a program."""
    return max(1, (ROWS_FLOAT32 if dtype is torch.float32 else ROWS) // group)


def depth_first(parents: list[int]) -> list[int]:
    """Every node's place in depth-first order."""
    children: list[list[int]] = [[] for _ in parents]
    stack = []
    for node in reversed(range(len(parents))):
        (children[parents[node]] if parents[node] >= 0 else stack).append(node)
    place, count = [0] * len(parents), 0
    while stack:
        node = stack.pop()
        place[node] = count
        count += 1
        stack += children[node]
    return place


def build(
    parents: list[int],
    page_offsets: list[int],
    page_ids: list[int],
    lengths: list[int],
    leaves: list[int],
    page_size: int,
    most_paths: int,
) -> Work:
    """`most_paths`: of an item."""
    place = depth_first(parents)
    nodes: dict[int, Node] = {}
    for i in sorted(range(len(parents)), key=place.__getitem__):
        start = nodes[parents[i]].end if parents[i] >= 0 else 0
        pages = page_ids[page_offsets[i] : page_offsets[i + 1]]
        nodes[i] = Node(parents[i], start, start + lengths[i], pages)
    work = Work()
    ranked = sorted(range(len(leaves)), key=lambda n: place[leaves[n]] if leaves[n] >= 0 else -1)
    for n in ranked:
        length = nodes[leaves[n]].end if leaves[n] >= 0 else 0
        work.paths.append((n, length, work.states))
        work.states += -(-length // CHUNK)
    longest = max((length for _, length, _ in work.paths), default=0)
    for chunk in range(-(-longest // CHUNK)):
        group: list[list[int]] = []
        first, new = 0, 0
        for rank, (n, length, _) in enumerate(work.paths):
            if length <= chunk * CHUNK:
                add_item(work, nodes, page_size, chunk, first, group)
                group = []
                continue
            owners = tile_owners(nodes, leaves[n], chunk, length)
            steps = len(owners)
            if group:
                steps = sum(a != b for a, b in zip_longest(owners, group[-1]))
                if len(group) == most_paths or new + steps > MOST_STEPS:
                    add_item(work, nodes, page_size, chunk, first, group)
                    group, steps = [], len(owners)
            if not group:
                first, new = rank, 0
            group.append(owners)
            new += steps
        add_item(work, nodes, page_size, chunk, first, group)
    return work


def zip_longest(owners: list[int], others: list[int]) -> list[tuple[int, int]]:
    return [(owner, others[i] if i < len(others) else -1) for i, owner in enumerate(owners)]


def tile_owners(nodes: dict[int, Node], leaf: int, chunk: int, length: int) -> list[int]:
    """Of each tile of a path in a chunk the node that holds its last token: it says which tokens the tile
    has, and paths that agree on it share the tile."""
    owners = []
    node = leaf
    for last in range(min(length, (chunk + 1) * CHUNK), chunk * CHUNK, -TILE):
        last = length if last == length else -(-last // TILE) * TILE
        while nodes[node].start >= last:
            node = nodes[node].parent
        owners.append(node)
    return owners[::-1]


def add_item(
    work: Work,
    nodes: dict[int, Node],
    page_size: int,
    chunk: int,
    first: int,
    group: list[list[int]],
) -> None:
    if not group:
        return
    first_step = len(work.steps)
    for i in range(max(map(len, group))):
        tile = chunk * CHUNK // TILE + i
        rank = 0
        while rank < len(group):
            owner = group[rank][i] if i < len(group[rank]) else -1
            last = rank + 1
            while last < len(group) and (group[last][i] if i < len(group[last]) else -1) == owner:
                last += 1
            if owner >= 0:
                work.steps.append((tile, first + rank, first + last))
                work.slots.append(tile_slots(nodes, owner, tile, page_size))
            rank = last
    work.items.append((first, len(group), first_step, len(work.steps) - first_step, chunk))


def tile_slots(nodes: dict[int, Node], owner: int, tile: int, page_size: int) -> list[int]:
    slots = [-1] * TILE
    node = owner
    while node >= 0 and nodes[node].end > tile * TILE:
        at = nodes[node]
        for position in range(max(at.start, tile * TILE), min(at.end, (tile + 1) * TILE)):
            index = position - at.start
            slots[position - tile * TILE] = (
                at.pages[index // page_size] * page_size + index % page_size
            )
        node = at.parent
    return slots
