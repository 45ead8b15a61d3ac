"""The page cache against a model that is plain Python: what each path must read."""

from __future__ import annotations

import random

import numpy as np

from ..engine.cache import ROOT, OutOfPages, PathCache, pages_for
from . import Found

OPERATIONS = 20_000
MOST_PATHS = 40


class Model:
    """A cache over a pool of one number a slot, and the numbers each path has written."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.cache = PathCache(pages, page_size)
        self.pool = np.full((pages, page_size), np.nan)
        self.paths: list[tuple[int, list[float]]] = []
        self.written = 0.0

    def new(self) -> None:
        leaf, _ = self.cache.new(np.array([0], np.int32), salt=None)
        self.paths.append((leaf, []))

    def fork(self, which: int, times: int) -> None:
        leaf, values = self.paths[which]
        self.cache.share(np.array([leaf]), np.array([times]))
        self.paths += [(leaf, list(values)) for _ in range(times)]

    def append(self, which: list[int], counts: list[int]) -> None:
        leaves = np.array([self.paths[i][0] for i in which], np.int64)
        written = self.cache.write(leaves, np.array(counts, np.int64))
        self.pool[written.copy_to] = self.pool[written.copy_from]
        for i, leaf, count in zip(which, written.leaves.tolist(), counts, strict=True):
            values = self.paths[i][1]
            row = [self.written + j for j in range(count)]
            self.written += count
            places = np.arange(len(values), len(values) + count)
            self.pool.reshape(-1)[self.cache.slots(np.full(count, leaf), places)] = row
            self.paths[i] = (leaf, values + row)

    def free(self, which: int) -> None:
        self.cache.release(np.array([self.paths.pop(which)[0]]))

    def read(self, leaf: int) -> list[float]:
        values: list[float] = []
        while leaf != ROOT:
            length = int(self.cache.length[leaf])
            pages = self.cache.table[leaf, : pages_for(length, self.cache.page_size)]
            values = self.pool[pages].reshape(-1)[:length].tolist() + values
            leaf = int(self.cache.parent[leaf])
        return values

    def faults(self) -> list[str]:
        found, nodes = [], set()
        for leaf, values in self.paths:
            if self.read(leaf) != values:
                found.append("a path reads what it did not write")
            while leaf != ROOT:
                nodes.add(leaf)
                leaf = int(self.cache.parent[leaf])
        held: list[int] = []
        for node in nodes:
            count = pages_for(int(self.cache.length[node]), self.cache.page_size)
            held += self.cache.table[node, :count].tolist()
        if len(set(held)) != len(held):
            found.append("a page has two owners")
        if len(held) + self.cache.free_pages != self.cache.pages:
            found.append(f"{self.cache.pages - len(held) - self.cache.free_pages} pages lost")
        return found


def random_operations() -> Found:
    rng = random.Random(0)  # noqa: S311
    failures: list[str] = []
    model = Model(200, 4)
    for step in range(OPERATIONS):
        paths = len(model.paths)
        what = rng.choice(["new", "fork", "append", "append", "append", "free"])
        try:
            if not paths or (what == "new" and paths < MOST_PATHS):
                model.new()
            elif what == "fork" and paths < MOST_PATHS:
                model.fork(rng.randrange(paths), rng.randint(1, 4))
            elif what == "append":
                which = rng.sample(range(paths), rng.randint(1, paths))
                model.append(which, [rng.randint(1, 6) for _ in which])
            else:
                model.free(rng.randrange(paths))
        except OutOfPages:
            model.free(rng.randrange(paths))
        if step % 50 == 0 and (found := model.faults()):
            return step, [f"operation {step}: {fault}" for fault in found]
    while model.paths:
        model.free(0)
    failures += model.faults()
    if model.cache.nodes != 1:
        failures.append(f"{model.cache.nodes - 1} nodes left when every path is gone")
    return OPERATIONS, failures
