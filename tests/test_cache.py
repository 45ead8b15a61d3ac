"""The path cache against a plain-Python model: no leak, no double free, no token of one path in
another."""

import os
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyttc.engine.cache import ROOT, OutOfPages, PathCache, pages_for
from tests.common import EXAMPLES, fastest
from tests.pages import check_pages


class Checked:
    """A cache, a pool of one float a slot (NaN where nothing was stored), and what each path must
    read."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.cache = PathCache(pages, page_size)
        self.pool = np.full((pages, page_size), np.nan)
        self.paths: list[tuple[int, list[float]]] = []  # leaf, the values of its tokens
        self.prompts: dict[int, int] = {}
        self.stamp = 0.0

    def new(self, tokens: list[int], salt: bytes | None = b"") -> None:
        ids = np.array(tokens, np.int32)
        leaf, matched = self.cache.new(ids, salt)
        assert matched < len(tokens) and matched % self.cache.page_size == 0
        values = self.read(leaf)
        # a prompt's values are its salt, its tokens and where they stand, so that a wrong match shows
        base = 0 if salt is None else 10 * len(salt)
        wanted = [base + t + i / 1000 for i, t in enumerate(tokens)]
        assert values == wanted[:matched]
        self.paths.append((leaf, values))
        try:
            self.write([len(self.paths) - 1], [wanted[matched:]])
        except OutOfPages:
            self.cache.release(np.array([self.paths.pop()[0]]))
            raise
        self.cache.remember(self.paths[-1][0], ids[matched:], salt)

    def fork(self, which: int, times: int) -> None:
        leaf, values = self.paths[which]
        self.cache.share(np.array([leaf]), np.array([times]))
        self.paths += [(leaf, list(values)) for _ in range(times)]

    def append(self, which: list[int], counts: list[int]) -> None:
        rows = []
        for count in counts:
            rows.append([1000.0 + self.stamp + i for i in range(count)])
            self.stamp += count
        self.write(which, rows)

    def write(self, which: list[int], rows: list[list[float]]) -> None:
        leaves = np.array([self.paths[i][0] for i in which], np.int64)
        counts = np.array([len(row) for row in rows], np.int64)
        before = (self.cache.free_pages, self.cache.nodes, self.cache.refs.copy())
        needed = self.cache.pages_needed(leaves, counts)
        try:
            written = self.cache.write(leaves, counts)
        except OutOfPages as error:
            assert (error.needed, error.free) == (needed, self.cache.free_pages)
            assert needed > before[0] == self.cache.free_pages
            assert self.cache.nodes == before[1] and np.array_equal(self.cache.refs, before[2])
            raise
        assert before[0] - self.cache.free_pages == needed
        self.pool[written.copy_to] = self.pool[written.copy_from]
        for i, leaf, row in zip(which, written.leaves.tolist(), rows, strict=True):
            values = self.paths[i][1]
            positions = np.arange(len(values), len(values) + len(row))
            slots = self.cache.slots(np.full(len(row), leaf), positions)
            self.pool.reshape(-1)[slots] = row
            self.paths[i] = (leaf, values + row)

    def free(self, which: list[int]) -> None:
        self.cache.release(np.array([self.paths[i][0] for i in which], np.int64))
        self.paths = [p for i, p in enumerate(self.paths) if i not in set(which)]
        self.poison_unused()

    def select(self, which: list[int]) -> None:
        """What Paths.select does: those at `which`, in that order and maybe several times, stay."""
        old = np.array([leaf for leaf, _ in self.paths], np.int64)
        self.cache.share(old[which], np.ones(len(which), np.int64))
        self.cache.release(old)
        self.paths = [(self.paths[i][0], list(self.paths[i][1])) for i in which]
        self.poison_unused()

    def read(self, leaf: int) -> list[float]:
        values: list[float] = []
        while leaf != ROOT:
            length = int(self.cache.length[leaf])
            pages = self.cache.table[leaf, : pages_for(length, self.cache.page_size)]
            values = self.pool[pages].reshape(-1)[:length].tolist() + values
            leaf = int(self.cache.parent[leaf])
        return values

    def poison_unused(self) -> None:
        used = np.zeros(self.cache.pages, bool)
        for node in self.live():
            used[self.node_pages(node)] = True
        self.pool[~used] = np.nan

    def live(self) -> set[int]:
        nodes: set[int] = set()
        for leaf, _ in self.paths:
            while leaf != ROOT and leaf not in nodes:
                nodes.add(leaf)
                leaf = int(self.cache.parent[leaf])
        return nodes

    def node_pages(self, node: int) -> list[int]:
        length = int(self.cache.length[node])
        return self.cache.table[node, : pages_for(length, self.cache.page_size)].tolist()

    def check_content(self) -> None:
        for leaf, values in self.paths:
            assert self.read(leaf) == values
            assert int(self.cache.lengths(np.array([leaf]))[0]) == len(values)

    def check_structure(self) -> None:
        check_pages(self.cache, np.array([leaf for leaf, _ in self.paths], np.int64))


class CacheMachine(RuleBasedStateMachine):
    @initialize(pages=st.integers(1, 40), page_size=st.integers(1, 5))
    def start(self, pages: int, page_size: int) -> None:
        self.checked = Checked(pages, page_size)

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=24),
        salt=st.sampled_from([b"", b"a", b"ab", None]),
    )
    def new(self, tokens: list[int], salt: bytes | None) -> None:
        try:
            self.checked.new(tokens, salt)
        except OutOfPages:
            pass

    @rule(data=st.data(), times=st.integers(1, 5))
    def fork(self, data: st.DataObject, times: int) -> None:
        if self.checked.paths:
            self.checked.fork(data.draw(st.integers(0, len(self.checked.paths) - 1)), times)

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        which = data.draw(self.some_paths())
        counts = [data.draw(st.integers(1, 9)) for _ in which]
        try:
            self.checked.append(which, counts)
        except OutOfPages:
            pass

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.checked.free(data.draw(self.some_paths()))

    @rule(data=st.data())
    def select(self, data: st.DataObject) -> None:
        rows = st.sampled_from(range(len(self.checked.paths)))
        if self.checked.paths:
            self.checked.select(data.draw(st.lists(rows, max_size=12)))

    def some_paths(self) -> st.SearchStrategy[list[int]]:
        return (
            st.lists(st.sampled_from(range(len(self.checked.paths))), unique=True, max_size=8)
            if (self.checked.paths)
            else st.just([])
        )

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "checked"):
            self.checked.check_content()
            self.checked.check_structure()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=30, derandomize=True
)


def test_a_million_operations():
    """Seeded, mixed, with little memory: contents compared at every step of the paths touched."""
    operations = int(os.environ.get("PYTTC_CACHE_OPERATIONS", 1_000_000))
    rng = np.random.default_rng(0)
    checked = Checked(pages=600, page_size=4)
    done = refused = sweep = 0
    start = time.monotonic()
    while done < operations:
        paths = len(checked.paths)
        kind = rng.integers(20)
        try:
            if kind == 0 or not paths:
                checked.new(rng.integers(0, 2, int(rng.integers(1, 40))).tolist())
                done += 1
            elif kind <= 3 and paths < 400:
                times = int(rng.integers(1, 65))
                checked.fork(int(rng.integers(paths)), times)
                done += times
            elif kind == 4:
                kept = rng.integers(0, paths, min(paths, 300)).tolist()
                checked.select(kept)
                done += len(kept)
            elif kind <= 16:
                which = rng.permutation(paths)[: int(rng.integers(1, 257))].tolist()
                done += len(which)
                checked.append(which, rng.integers(1, 4, len(which)).tolist())
            else:
                which = rng.permutation(paths)[: int(rng.integers(1, 1 + paths))].tolist()
                checked.free(which)
                done += len(which)
        except OutOfPages:
            refused += 1
            if rng.integers(4) == 0:
                checked.free(rng.permutation(paths)[: paths // 2].tolist())
        sweep += 1
        if sweep % 50 == 0:
            checked.check_content()
            checked.check_structure()
    checked.free(list(range(len(checked.paths))))
    assert checked.cache.free_pages == 600 and checked.cache.nodes == 1
    assert refused > 50
    print(f"{sweep} calls, {refused} refused, {time.monotonic() - start:.1f} s")


def test_fork_touches_no_page():
    cache = PathCache(1000, 16)
    leaf, _ = cache.new(np.arange(4100, dtype=np.int32))
    leaves = cache.write(np.array([leaf]), np.array([4100])).leaves
    free = cache.free_pages
    children = []

    def fork():
        cache.share(leaves, np.array([256]))
        children.append(np.repeat(leaves, 256))

    assert fastest(fork, 100e-6, after=lambda: cache.release(children.pop())) < 100e-6
    assert cache.free_pages == free


def test_first_write_copies_only_the_partial_page():
    cache = PathCache(600, 16)
    leaf, _ = cache.new(np.arange(4100, dtype=np.int32))
    leaves = cache.write(np.array([leaf]), np.array([4100])).leaves
    cache.share(leaves, np.array([63]))
    written = cache.write(np.repeat(leaves, 64), np.ones(64, np.int64))
    # the last of those who hold the page keeps it
    assert written.copy_to.size == 63 and set(written.copy_from.tolist()) == {256}
    assert np.unique(written.leaves).size == 64
    assert cache.pages - cache.free_pages == 257 + 63


def test_prompts_share_whole_pages_by_token_ids():
    cache = PathCache(100, 4)
    a = np.arange(19, dtype=np.int32)
    leaf, matched = cache.new(a)
    assert matched == 0
    leaf = int(cache.write(np.array([leaf]), np.array([19])).leaves[0])
    cache.remember(leaf, a)
    b = a.copy()
    b[10] = 99
    for prompt, shared in ((a, 16), (a[:17], 16), (a[:16], 12), (b, 8), (a[1:], 0), (a[:3], 0)):
        other, matched = cache.new(prompt)
        assert matched == shared
        cache.release(np.array([other]))
    cache.release(np.array([leaf]))
    assert cache.new(a)[1] == 0


def test_prompts_of_other_salts_share_nothing():
    cache = PathCache(100, 4)
    tokens = np.arange(19, dtype=np.int32)
    leaves = {}
    for salt in (b"a", b"b", b"", None):
        leaf, matched = cache.new(tokens, salt)
        assert matched == 0
        leaves[salt] = cache.write(np.array([leaf]), np.array([19])).leaves
        cache.remember(leaf, tokens, salt)
    cut = np.concatenate([tokens[:9], tokens[:3]])  # splits the nodes it matches
    for salt in (b"a", b"b", b""):
        for prompt, shared in ((tokens, 16), (cut, 8), (tokens, 16)):
            other, matched = cache.new(prompt, salt)
            assert matched == shared
            cache.release(np.array([other]))
    for salt in (None, b"c", b"a" + tokens[:1].tobytes()):
        assert cache.new(tokens, salt)[1] == 0
    cache.release(leaves[b"a"])
    assert cache.new(tokens, b"a")[1] == 0 and cache.new(tokens, b"b")[1] == 16


def test_out_of_pages_says_what_is_needed():
    cache = PathCache(4, 4)
    leaf, _ = cache.new(np.arange(5, dtype=np.int32))
    with pytest.raises(OutOfPages, match="needs 5 pages and 4 of 4 are free"):
        cache.write(np.array([leaf]), np.array([17]))
    cache.write(np.array([leaf]), np.array([16]))
    assert cache.free_pages == 0


def test_tokens_under_leaves_are_counted_once_and_no_others():
    cache = PathCache(200, 4)
    leaves = np.array([cache.new(np.array([i], np.int32), None)[0] for i in range(63)])
    leaves = cache.write(leaves, np.arange(1, 64) % 7 + 1).leaves  # all the nodes there is room for
    held = cache.lengths(leaves)
    assert cache.tokens_under(leaves[[3, 5, 3]]) == held[3] + held[5]
    assert cache.tokens_under(leaves[:0]) == 0
    cache.share(leaves[:1], np.array([2]))
    forks = cache.write(np.repeat(leaves[:1], 3), np.array([5, 6, 0])).leaves
    whole = held[0] // 4 * 4  # what fills its pages is shared, the rest is each one's own
    assert cache.tokens_under(forks) == whole + 3 * (held[0] - whole) + 5 + 6
