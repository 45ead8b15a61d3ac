"""Which pages hold which path: the bookkeeping of a paged cache shared by a tree of paths.

A node is a run of tokens in pages of its own; a path is the chain of nodes from the root to its
leaf. Node 0 is the root of all, empty and never freed. Forking adds a reference to a leaf, nothing
else. The first write to a leaf that others hold too gives the writer a leaf of its own: it shares
every full page with them and copies the partial one. Hence what holds at all times:

- a node with children ends on a page boundary, so that every node starts on one;
- refs[node] = its handles (paths that end there) + its children; at 0 its pages are free at once;
- a leaf with one reference belongs to the one path that holds it, and is written in place.

Everything is numpy arrays indexed by node; nothing here touches keys, values or a device.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .ownership import NotCopied

Ints = npt.NDArray[np.int64]
ROOT = 0
FREE = -1  # the references of a node that is none


class OutOfPages(RuntimeError):
    """The pool has fewer free pages than a call needs. Nothing was changed.

    Attributes:
        needed, free: pages the call needs, and pages that are free.
    """

    def __init__(self, needed: int, free: int, total: int) -> None:
        super().__init__(
            f"this needs {needed} pages and {free} of {total} are free: drop paths with select(), "
            "or give the engine more memory"
        )
        self.needed, self.free = needed, free


class Written(NamedTuple):
    """What `PathCache.write` did: each path's leaf now, and the pages to copy before anything is
    stored."""

    leaves: Ints
    copy_from: Ints
    copy_to: Ints


def pages_for(tokens: Any, page_size: int) -> Any:
    return (tokens + page_size - 1) // page_size


class PathCache(NotCopied):
    """The tree of nodes over `pages` pages of `page_size` tokens."""

    instead = "it belongs to its engine. Make another with Engine.from_pretrained()"

    def __init__(self, pages: int, page_size: int) -> None:
        self.pages, self.page_size = pages, page_size
        self.parent = np.zeros(64, np.int64)
        self.start = np.zeros(64, np.int64)  # tokens before the node
        self.length = np.zeros(64, np.int64)
        self.refs = np.zeros(64, np.int64)
        self.table = np.zeros(
            (64, 4), np.int32
        )  # pages of a node, the first pages_for(length) hold
        self.parent[ROOT], self.refs[ROOT] = -1, 1
        self._free_nodes = np.arange(63, 0, -1)
        self._nodes_left = 63
        self._left: list[Ints] = []  # nodes let go of that may be nobody's now
        self._free_pages = np.arange(pages - 1, -1, -1, dtype=np.int32)
        self._pages_left = pages
        self.structure = 0  # changes whenever anything but a length does
        self._under = (-1, np.empty(0, np.int64), np.empty(0, np.int64))  # of tokens_under
        # prompts: the salt and the tokens of a node's full pages; the children of a node by their salt
        # and the tokens of their first page
        self._known: dict[int, tuple[bytes, npt.NDArray[np.int32]]] = {}
        self._children: dict[tuple[int, bytes, bytes], int] = {}

    @property
    def free_pages(self) -> int:
        return self._pages_left

    @property
    def nodes(self) -> int:
        """Live nodes, the root of all among them."""
        return self.refs.size - self._nodes_left

    def lengths(self, leaves: Ints) -> Ints:
        """Tokens of the paths that end in `leaves`."""
        return self.start[leaves] + self.length[leaves]

    # --- paths come and go

    def share(self, leaves: Ints, times: Ints) -> None:
        """Adds times[i] references to leaf i: a fork."""
        np.add.at(self.refs, leaves, times)

    def release(self, leaves: Ints) -> None:
        """Takes one reference of each leaf away; nodes nobody holds any more give back their
        pages, at once or, should memory be out, with a later call."""
        np.subtract.at(self.refs, leaves, 1)
        self._left.append(leaves)
        with contextlib.suppress(MemoryError):
            self.sweep()

    def sweep(self) -> None:
        """Gives back the pages of all nodes that were let go of."""
        while self._left:
            nodes = self._left[-1]
            nodes = nodes[self.refs[nodes] == 0]
            if nodes.size > 1:
                nodes = np.unique(nodes)
            rows, columns = ragged(pages_for(self.length[nodes], self.page_size))
            freed, parents = self.table[nodes[rows], columns], self.parent[nodes]
            self._left.pop()
            if nodes.size:
                self._give_back(freed)
                self._free(nodes)
                np.subtract.at(self.refs, parents, 1)
                self._left.append(parents)

    def _free(self, nodes: Ints) -> None:
        """Makes nodes that nobody holds free for others."""
        if self._known:
            for node in nodes.tolist():
                self._forget(node)
        self._free_nodes[self._nodes_left : self._nodes_left + nodes.size] = nodes
        self._nodes_left += nodes.size
        self.structure += 1
        self.parent[nodes], self.length[nodes], self.refs[nodes] = ROOT, 0, FREE

    def _give_back(self, pages: npt.NDArray[np.int32]) -> None:
        self._free_pages[self._pages_left : self._pages_left + pages.size] = pages
        self._pages_left += pages.size

    # --- writing

    def pages_needed(self, leaves: Ints, counts: Ints) -> int:
        """Free pages that `write(leaves, counts)` takes."""
        return self._plan(leaves, counts)[0]

    def _plan(self, leaves: Ints, counts: Ints) -> tuple[int, Ints, Ints, Ints]:
        """Pages a write needs; the tokens that are in each path's own leaf before it; which rows (indices)
        must leave a shared leaf for that, and which of those copy."""
        ps, own = self.page_size, self.length[leaves]
        shared = np.flatnonzero(self.refs[leaves] > 1)
        leaving = copying = shared
        if shared.size:
            tail = own % ps
            # where all who hold a partial page write, the first of them keeps it
            held, first, writers = np.unique(leaves[shared], return_index=True, return_counts=True)
            keeps = first[(writers == self.refs[held]) & (self.length[held] % ps > 0)]
            leaving = np.delete(shared, keeps)
            copying = leaving[tail[leaving] > 0]
            own[shared] = tail[shared]  # full pages go to a node that all of them share
        needed = int((pages_for(own + counts, ps) - pages_for(own, ps)).sum()) + copying.size
        return needed, own, leaving, copying

    def write(self, leaves: Ints, counts: Ints) -> Written:
        """Makes room for counts[i] >= 1 more tokens at the end of path i.

        A leaf held by more than one path may come several times, once for each path that writes.

        Raises:
            OutOfPages, MemoryError: nothing was changed.
        """
        needed, own, leaving, copying = self._plan(leaves, counts)
        if needed > self._pages_left:
            raise OutOfPages(needed, self._pages_left, self.pages)
        # what may run out of memory comes before what changes anything
        have, holds = pages_for(own, self.page_size), pages_for(own + counts, self.page_size)
        rows, columns = ragged(holds - have)
        self._widen(int(holds.max(initial=0)))
        self._grow(2 * leaving.size)
        copy_from = copy_to = np.empty(0, np.int64)
        if leaving.size:
            old = leaves[leaving]
            tail = own[leaving]
            base = self._make_shareable(old)
            new = self._take_nodes(leaving.size)
            self.parent[new] = base
            self.start[new] = self.start[base] + self.length[base]
            self.refs[new] = 1
            np.add.at(self.refs, base, 1)
            np.subtract.at(self.refs, old, 1)
            if copying.size:
                copies = tail > 0
                copy_from = self.table[old[copies], 0].astype(np.int64)
                self.table[new[copies], 0] = self._take_pages(int(copying.size))
                copy_to = self.table[new[copies], 0].astype(np.int64)
            leaves = leaves.copy()
            leaves[leaving] = new
        self.length[leaves] = own + counts
        if rows.size:
            self.table[leaves[rows], have[rows] + columns] = self._take_pages(rows.size)
            self.structure += 1
        return Written(leaves, copy_from, copy_to)

    def _make_shareable(self, leaves: Ints) -> Ints:
        """The nodes new children of `leaves` hang from, after cutting off each leaf's partial
        page."""
        cut = np.unique(leaves)
        full = self.length[cut] // self.page_size
        partial = self.length[cut] % self.page_size > 0
        self.split(cut[partial & (full > 0)], full[partial & (full > 0)])
        return np.where(self.length[leaves] % self.page_size > 0, self.parent[leaves], leaves)

    def split(self, nodes: Ints, pages: Ints) -> Ints:
        """Moves the first pages[i] >= 1 pages of each node into a new parent; returns the parents.

        The node keeps its id, its handles and its children, and what lies after the cut.
        """
        width = self.table.shape[1]
        columns = np.minimum(np.arange(width) + pages[:, None], width - 1)
        below = np.take_along_axis(self.table[nodes], columns, 1)
        upper = self._take_nodes(nodes.size)
        known = {n: self._forget(n) for n in nodes.tolist()} if self._known else {}
        self.table[upper] = self.table[nodes]
        self.parent[upper] = self.parent[nodes]
        self.start[upper] = self.start[nodes]
        self.length[upper] = pages * self.page_size
        self.refs[upper] = 1
        self.table[nodes] = below
        self.parent[nodes] = upper
        self.start[nodes] += pages * self.page_size
        self.length[nodes] -= pages * self.page_size
        for (node, prompt), parent, cut in zip(
            known.items(), upper.tolist(), (pages * self.page_size).tolist(), strict=False
        ):
            if prompt is not None:
                salt, tokens = prompt
                self._remember(parent, salt, tokens[:cut])
                self._remember(node, salt, tokens[cut:])
        return upper

    def take_back(self, before: Ints, written: Ints, counts: Ints) -> None:
        """Undoes a `write` of paths that ended in the leaves `before`, and now in `written`."""
        left = before != written
        again, dropped, leaves = before[left], written[left], written[~left]
        length = self.length[leaves] - counts[~left]
        keep, have = (pages_for(n, self.page_size) for n in (length, self.length[leaves]))
        rows, columns = ragged(have - keep)
        freed = self.table[leaves[rows], keep[rows] + columns]
        self.length[leaves] = length
        self._give_back(freed)
        self.structure += 1
        np.add.at(self.refs, again, 1)
        self.release(dropped)

    def tokens_under(self, leaves: Ints) -> int:
        """Tokens of all nodes on the way from the root to `leaves`, each node once."""
        structure, known, under = self._under
        if structure != self.structure or not np.array_equal(leaves, known):
            seen = np.zeros(self.refs.size, bool)
            nodes = leaves
            while nodes.size:
                seen[nodes] = True
                nodes = self.parent[nodes]
                nodes = nodes[(nodes > ROOT) & ~seen[nodes]]
            under = np.flatnonzero(seen)
            self._under = self.structure, leaves.copy(), under
        return int(self.length[under].sum())

    def slots(self, leaves: Ints, positions: Ints) -> Ints:
        """Where in the pool the tokens at `positions` (from the root) lie, all of them in their
        leaf."""
        offset = positions - self.start[leaves]
        page: Ints = self.table[leaves, offset // self.page_size].astype(np.int64)
        return page * self.page_size + offset % self.page_size

    def _take_pages(self, count: int) -> npt.NDArray[np.int32]:
        self._pages_left -= count
        return self._free_pages[self._pages_left : self._pages_left + count][::-1]

    def _take_nodes(self, count: int) -> Ints:
        self._grow(count)
        self._nodes_left -= count
        self.structure += 1
        return self._free_nodes[self._nodes_left : self._nodes_left + count][::-1].copy()

    def _grow(self, nodes: int) -> None:
        """Makes at least so many nodes free."""
        while nodes > self._nodes_left:
            size = self.refs.size
            names = ("parent", "start", "length", "refs")
            grown = {n: np.concatenate([getattr(self, n), np.zeros(size, np.int64)]) for n in names}
            table = np.concatenate([self.table, np.zeros_like(self.table)])
            fresh = np.arange(2 * size - 1, size - 1, -1)
            free = np.concatenate([fresh, self._free_nodes[: self._nodes_left]])
            free = np.concatenate([free, np.zeros(2 * size - free.size, np.int64)])
            self.__dict__.update(grown, table=table, _free_nodes=free)
            self._nodes_left += size

    def _widen(self, pages: int) -> None:
        """Makes room for so many pages of a node."""
        width = self.table.shape[1]
        if pages > width:
            self.table = np.pad(self.table, ((0, 0), (0, max(pages, 2 * width) - width)))

    # --- prompts that begin alike

    def new(self, tokens: npt.NDArray[np.int32], salt: bytes | None = b"") -> tuple[int, int]:
        """A leaf for a new path, and how many leading tokens its ancestors already hold.

        Whole pages of earlier prompts of the same salt that are still held are found by comparing
        token ids, none with salt=None. At least the last token of a prompt is always left to the
        caller, to be written with `write`.
        """
        ps, node, matched = self.page_size, ROOT, 0
        limit = (tokens.size - 1) // ps * ps
        while salt is not None and matched < limit:
            child = self._children.get((node, salt, tokens[matched : matched + ps].tobytes()))
            if child is None:
                break
            known = self._known[child][1]
            ahead = tokens[matched : min(limit, matched + known.size)]
            unequal = np.flatnonzero(known[: ahead.size] != ahead)
            same = (int(unequal[0]) if unequal.size else ahead.size) // ps * ps
            if same < self.length[child]:
                child = int(self.split(np.array([child]), np.array([same // ps]))[0])
            node, matched = child, matched + same
        leaf = self._take_nodes(1)
        self.parent[leaf], self.start[leaf], self.refs[leaf] = node, matched, 1
        self.refs[node] += 1
        return int(leaf[0]), matched

    def remember(self, leaf: int, tokens: npt.NDArray[np.int32], salt: bytes | None = b"") -> None:
        """Lets later prompts of the same salt share the full pages of `leaf`, which holds the prompt's
        last `tokens`."""
        if salt is not None:
            self._remember(leaf, salt, tokens[: tokens.size // self.page_size * self.page_size])

    def _remember(self, node: int, salt: bytes, tokens: npt.NDArray[np.int32]) -> None:
        if tokens.size:
            key = self._key_of(node, salt, tokens)
            if key not in self._children:
                self._children[key] = node
                self._known[node] = salt, tokens

    def _forget(self, node: int) -> tuple[bytes, npt.NDArray[np.int32]] | None:
        prompt = self._known.pop(node, None)
        if prompt is not None:
            del self._children[self._key_of(node, *prompt)]
        return prompt

    def _key_of(
        self, node: int, salt: bytes, tokens: npt.NDArray[np.int32]
    ) -> tuple[int, bytes, bytes]:
        return int(self.parent[node]), salt, tokens[: self.page_size].tobytes()


def ragged(counts: Ints) -> tuple[Ints, Ints]:
    """For each i, counts[i] entries: the row i, and 0 .. counts[i] - 1."""
    rows = np.repeat(np.arange(counts.size), counts)
    return rows, np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
