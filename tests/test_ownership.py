"""Who may touch the pages of an engine: paths are not copied, threads take turns, garbage waits."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from pyttc.engine import Engine, Paths, multi_step
from tests import engines
from tests.pages import check_engine

engine, nothing_leaks = engines.small, engines.nothing_leaks


@pytest.fixture(scope="module", autouse=True)
def quick_turns(engine: Engine) -> Iterator[None]:
    """Threads change places often; a collection looks at what tests make, not at all that is there."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    sys.setswitchinterval(before)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_holds_pages_is_not_copied(engine: Engine, duplicate: Callable[[Any], object]) -> None:
    paths = engine.prefill("the steps").fork(4, seed=0).decode(max_new_tokens=20)
    for thing, instead in (
        (paths, r"fork\(\) or select\(\)"),
        (engine, "from_pretrained"),
        (engine.pool, "from_pretrained"),
        (engine.cache, "from_pretrained"),
    ):
        with pytest.raises(TypeError, match=f"^{type(thing).__name__}: can be neither.*{instead}"):
            duplicate(thing)
    gc.collect()
    check_engine(engine, paths)
    assert torch.equal(copy.deepcopy(paths.tokens), paths.tokens)
    assert copy.deepcopy(paths.cost).ran == paths.cost.ran


PROMPTS = ["the steps; then", "the next", "and the last step. " * 3, "the steps; then the next"]
PATIENCE = 60  # seconds for what takes a moment, on a machine that has others to do


def roll(engine: Engine, prompt: str) -> list[list[int]]:
    """What the verbs make of a prompt."""
    paths = engine.prefill(prompt).fork(6, seed=1).decode(max_new_tokens=20)
    paths.select([0, 2, 2, 5]).append("then").decode(max_new_tokens=4)
    paths.score(lambda paths: paths.hidden()[:, 0])
    tokens: list[list[int]] = paths.tokens.tolist()
    return tokens


def in_threads(calls: list[Callable[[], object]]) -> None:
    """Runs all calls at once and raises the first of their errors."""
    failed: list[BaseException] = []

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_threads_that_share_an_engine_get_what_each_gets_alone(engine: Engine) -> None:
    expected = [roll(engine, prompt) for prompt in PROMPTS]

    def repeat(which: int) -> None:
        for _ in range(30):
            assert roll(engine, PROMPTS[which]) == expected[which]
            gc.collect()

    in_threads([lambda which=which: repeat(which) for which in range(4)])  # type: ignore[misc]


@contextmanager
def decoding(paths: Paths) -> Iterator[None]:
    """Another thread is amid a step of these paths."""
    amid, go_on = threading.Event(), threading.Event()

    def wait(paths: Paths, running: Any) -> None:
        amid.set()
        go_on.wait(PATIENCE)

    options = {"max_new_tokens": 3, "stop_if": wait}
    thread = threading.Thread(target=paths.decode, kwargs=options)
    thread.start()
    assert amid.wait(PATIENCE)
    try:
        yield
    finally:
        go_on.set()
        thread.join()


def test_verbs_wait_for_the_verb_of_another_thread(engine: Engine) -> None:
    busy = engine.prefill("the").fork(2)
    a, b, c = (engine.prefill("the steps").fork(4, seed=seed) for seed in range(3))
    all_of_b = np.arange(4)
    verbs: list[Callable[[], object]] = [
        lambda: engine.prefill("the next"),
        lambda: engine.required_pages("the next"),
        lambda: engine.free_pages,
        lambda: engine.kv_bytes,
        lambda: engine.collect(),
        lambda: a.fork(2),
        lambda: Paths.cat([b, b]),
        lambda: a.decode(max_new_tokens=2),
        lambda: a.append("then"),
        lambda: a.select([1, 1, 0]),
        lambda: b.score(lambda paths: [0.0] * 4),
        lambda: b.hidden(),
        lambda: b.forward(all_of_b),
        lambda: b.logits(all_of_b),
        lambda: c.free(),
    ]
    with decoding(busy):
        threads = [threading.Thread(target=verb, daemon=True) for verb in verbs]
        for thread in threads:
            thread.start()
        threads[0].join(0.5)
        early = [i for i, thread in enumerate(threads) if not thread.is_alive()]
    for thread in threads:
        thread.join(PATIENCE)
    assert early == [] and not any(thread.is_alive() for thread in threads)


def test_garbage_amid_a_verb_leaves_the_cache_as_it_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, found = roll(engine, PROMPTS[0]), [0]
    write = engine.cache.write

    def collects(*args: Any) -> Any:
        cycle: list[Any] = [garbage.pop()] if garbage else []
        cycle.append(cycle)
        before = engine.cache.refs.copy(), engine.cache.free_pages
        del cycle
        found[0] += gc.collect() > 0
        assert np.array_equal(engine.cache.refs, before[0])
        assert engine.cache.free_pages == before[1]
        return write(*args)

    monkeypatch.setattr(multi_step, "STEPS", 1)  # a write for each
    garbage = [engine.prefill("the next").fork(3).decode(max_new_tokens=20) for _ in range(9)]
    gc.collect()
    monkeypatch.setattr(engine.cache, "write", collects)
    assert roll(engine, PROMPTS[0]) == expected
    assert found[0] > 5


def test_garbage_of_one_thread_amid_the_verb_of_another(engine: Engine) -> None:
    expected, over = roll(engine, PROMPTS[0]), threading.Event()

    def litter() -> None:
        while not over.is_set():
            cycle: list[Any] = [engine.prefill("the next").fork(9)]
            cycle += [cycle, cycle[0].fork(3)]
            del cycle
            gc.collect()
            assert 0 <= engine.free_pages <= engine.pool.pages

    def work() -> None:
        try:
            for _ in range(40):
                assert roll(engine, PROMPTS[0]) == expected
        finally:
            over.set()

    in_threads([work, litter, litter])


def interrupt_waiting(thread: int) -> None:
    """Ctrl-C once the main thread waits for the lock."""
    while sys._current_frames()[thread].f_code.co_name != "alone":
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_leaves_the_lock_free(engine: Engine) -> None:
    expected = roll(engine, PROMPTS[1])
    paths = engine.prefill("the").fork(4, seed=0)
    with pytest.raises(KeyboardInterrupt):
        paths.decode(stop_if=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    in_threads([lambda: roll(engine, PROMPTS[1])])
    # nor is waiting for another thread's verb beyond it
    busy = engine.prefill("the").fork(2)
    with decoding(busy):
        threading.Thread(target=interrupt_waiting, args=(threading.get_ident(),)).start()
        with pytest.raises(KeyboardInterrupt):
            paths.hidden()
    assert roll(engine, PROMPTS[1]) == expected and busy.ended == ["length"] * 2
