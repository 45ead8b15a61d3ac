"""Something fails in the middle of a call: an exception, nothing leaked, every path as before or finished,
and the same bits when it is asked again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pyttc.engine import Engine, LinearHead, OutOfPages, Paths, multi_step
from pyttc.engine.cache import PathCache
from pyttc.engine.tree import TreeBuilder
from tests import engines
from tests.common import written
from tests.faults import numpy_requests, torch_requests
from tests.pages import check_engine

PROMPT = list(range(2, 52))
HEAD = LinearHead(torch.linspace(-1, 1, 64))


engine, nothing_leaks = engines.small, engines.nothing_leaks


class State:
    """A prompt that is held, and paths in the middle of their pages that share it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.root = engine.prefill(PROMPT, seed=3)
        self.paths = self.root.fork(3).decode(max_new_tokens=5)
        self.made: Paths | None = None

    def alive(self) -> list[Paths]:
        return [p for p in (self.root, self.paths, self.made) if p is not None]

    def rows(self) -> list[list[int]]:
        return written(self.paths)

    def result(self) -> list[Any]:
        """What all paths go on with, whatever was done to them: tokens, log-probabilities, states."""
        everyone = []
        for paths in self.alive():
            paths.decode(max_new_tokens=3)
            everyone += [paths.tokens, paths.logprobs.nan_to_num(9), paths.hidden(), paths.lengths]
        return everyone


def prefill(state: State) -> None:
    state.made = state.engine.prefill([PROMPT[:40] + [7] * 5, PROMPT[:20]], seed=1)


def fork(state: State) -> None:
    state.made = state.paths.fork([2, 0, 1])


def decode(state: State) -> None:
    # twelve tokens each in all, however many there are already: into a page of their own
    state.paths.decode(max_new_tokens=12 - state.paths.new_lengths)


def decode_singly(state: State) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multi_step, "STEPS", 1)
        decode(state)


def decode_to_stop(state: State) -> None:
    stopped = np.array(state.paths.ended) == "until"
    left = np.where(stopped, 0, 12 - state.paths.new_lengths)
    state.paths.decode("e", max_new_tokens=left)


def append(state: State) -> None:
    state.paths.append([[5] * 30, [], [6]])


def score(state: State) -> None:
    state.paths.score(HEAD)


def select(state: State) -> None:
    state.paths.select([2, 0, 2])


def free(state: State) -> None:
    state.paths.free()


VERBS = (prefill, fork, decode, decode_singly, decode_to_stop, append, score, select, free)


def some(count: int, share: int) -> range:
    """Every `share`-th of the requests 1 to `count`, but at least ten of them."""
    return range(1, count + 1, max(1, min(share, count // 10)))


@pytest.mark.parametrize("share", [12, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("requests", [torch_requests, numpy_requests])
@pytest.mark.parametrize("verb", VERBS)
def test_memory_runs_out_at_any_request(
    verb: Callable[[State], None], requests: Any, share: int, engine: Engine
) -> None:
    for _ in range(2):  # once for what is done only once
        state = State(engine)
        with requests() as seen:
            verb(state)
    expected = state.result()
    del state
    print(
        f"{verb.__name__}: {len(some(seen.seen, share))} of {seen.seen} {requests.__name__} failed"
    )
    for k in some(seen.seen, share):
        state = State(engine)
        before, failed = state.rows(), False
        try:
            with requests(k):
                verb(state)  # an op whose allocation failed is asked again; giving back waits
        except MemoryError as error:
            failed = str(error) == f"request {k}"
            assert failed
        check_engine(engine, *state.alive())
        if failed:
            assert verb.__name__.startswith("decode") or state.rows() == before
            verb(state)
        for got, wanted in zip(state.result(), expected, strict=True):
            assert np.array_equal(got, wanted), f"request {k}"
        check_engine(engine, *state.alive())


def with_pages(engine: Engine, pages: int) -> None:
    """Gives the engine another cache, over the first `pages` pages of its pool."""
    engine.cache = PathCache(pages, engine.cache.page_size)
    engine._trees = TreeBuilder(engine.cache, engine.device)


def test_pages_run_out_at_any_page(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole() -> list[int]:
        """All verbs; when pages run out, half of the paths go, and so on."""
        refused = [0]

        def tried(call: Callable[[], Any], *alive: Paths) -> Any:
            while True:
                try:
                    return call()
                except OutOfPages as error:
                    refused[0] += 1
                    assert error.needed > error.free == engine.free_pages
                    check_engine(engine, *alive)
                    if len(alive) < 2 or len(alive[1]) < 2:
                        raise
                    alive[1].select(range(len(alive[1]) // 2))

        root = tried(lambda: engine.prefill(PROMPT, seed=3))
        paths = root.fork(4)
        target = paths.new_lengths[0] + 20
        tried(lambda: paths.decode(max_new_tokens=target - paths.new_lengths), root, paths)
        paths.append([9] * 20)
        tried(paths.hidden, root, paths)
        root.free()
        tried(lambda: paths.decode(max_new_tokens=target + 40 - paths.new_lengths), root, paths)
        check_engine(engine, root, paths)
        return [refused[0], *paths.tokens[0].tolist()]

    engine.collect()  # what was dropped, into the cache it is of
    monkeypatch.setattr(engine, "cache", engine.cache)  # given back at the end
    monkeypatch.setattr(engine, "_trees", engine._trees)
    with_pages(engine, 32)
    expected = whole()
    assert expected[0] == 0
    finished = 0
    for pages in range(32):
        with_pages(engine, pages)
        try:
            refused, *tokens = whole()
            assert tokens == expected[1:]
            finished += refused > 0
        except OutOfPages:
            pass
        check_engine(engine)
    assert finished > 5


def test_a_model_that_raises_in_the_middle_of_a_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi_step, "STEPS", 1)
    state = State(engine)
    decode(state)
    expected = state.result()
    hidden, calls = engine.model.hidden, [0]

    def failing(*step: Any) -> torch.Tensor:
        calls[0] += 1
        states = hidden(*step)  # keys and values are stored
        if calls[0] == 4:
            raise RuntimeError("no more")
        return states

    state = State(engine)
    before = state.rows()
    monkeypatch.setattr(engine.model, "hidden", failing)
    with pytest.raises(RuntimeError, match="no more"):
        decode(state)
    # three whole steps, of which the first needed no pass of its own
    assert [len(row) for row in state.rows()] == [len(row) + 3 for row in before]
    check_engine(engine, *state.alive())
    decode(state)
    for got, wanted in zip(state.result(), expected, strict=True):
        assert np.array_equal(got, wanted)


def test_a_row_of_nan_ends_its_path_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi_step, "STEPS", 1)
    state = State(engine)
    decode(state)
    expected = state.rows()
    logits, calls = engine.model.logits, [0]

    def spoiled(hidden: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        given = logits(hidden)
        if calls[0] == 3:
            given[1] = torch.nan
        return given

    state = State(engine)
    monkeypatch.setattr(engine.model, "logits", spoiled)
    decode(state)
    assert state.paths.ended == ["length", "invalid", "length"]
    assert [state.rows()[i] for i in (0, 2)] == [expected[i] for i in (0, 2)]
    assert state.rows()[1] == expected[1][: 5 + 2]
    check_engine(engine, *state.alive())
