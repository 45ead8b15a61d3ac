"""Several steps of decoding at once are the steps one by one: what is drawn, stored, counted and left when
something fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyttc import _C
from pyttc.engine import Engine, OutOfPages, Paths, multi_step, replay
from tests import engines, tiny_models
from tests.common import run_below, same, threads, written
from tests.pages import check_engine

engine, no_eos, nothing_leaks = engines.poisoned, engines.no_eos, engines.nothing_leaks
VALUES = ("tokens", "logprobs", "processed_logprobs", "entropy", "confidence")


@pytest.fixture
def runs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return engines.count_steps(engine, monkeypatch)


def state_of(paths: Paths) -> list[Any]:
    """All that is known of paths, but seconds."""
    arrays = [getattr(paths, name) for name in VALUES]
    costs = [{**vars(work), "seconds": 0} for work in (paths.cost.ran, paths.cost.unshared)]
    return [*arrays, paths.hidden(), paths.ended, paths.lengths.tolist(), costs]


def equal(a: list[Any], b: list[Any]) -> bool:
    return all(
        same(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True)
    )


def mixed(engine: Engine) -> Paths:
    """Two prompts, forks in the middle of pages, forced tokens, other limits, all filters, stops."""
    root = engine.prefill([[3, 5, 7] * 9, [11] * 16], seed=4)
    paths = root.fork([3, 2]).decode(max_new_tokens=[3, 20, 5, 20, 20], confidence=3)
    paths.append([[9], [], [8, 7], [], [4]])
    paths = paths.fork([2, 1, 0, 1, 1], seed=5)
    mask = torch.randint(-(2**31), 2**31 - 1, (5, 10), dtype=torch.int32)
    paths.decode(
        until=[17, 40],
        max_new_tokens=40,
        temperature=[0.5, 1.0, 1.5, 0.0, 1.0],
        top_k=[0, 20, 5, 0, 1],
        top_p=[0.9, 1.0, 0.8, 1.0, 0.5],
        min_p=0.01,
        mask=mask | 1,
        confidence=2,
    )
    return paths.decode("e", max_new_tokens=30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", tiny_models.FAMILY)
def test_the_bits_and_the_bill_of_single_steps(
    kind: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for most in (1, 16):
        other = Engine.from_pretrained(tiny_models.make(kind, tmp_path, dtype), memory="8MiB")
        check_engine(other)  # free pages hold NaN
        monkeypatch.setattr(multi_step, "STEPS", most)
        torch.manual_seed(0)
        taken = engines.count_steps(other, monkeypatch)
        paths = mixed(other)
        found.append([*state_of(paths), other.free_pages])
        assert bool(taken) == (most > 1)
        check_engine(other, paths)
    assert equal(*found)
    assert max(taken) > 4 and len(taken) > 4


def test_a_call_ends_with_the_first_path(no_eos: Engine, runs: list[int]) -> None:
    whole = no_eos.prefill("the").fork(5, seed=0).decode(max_new_tokens=30)
    assert runs == [16, 13]  # the first token needs no pass
    runs.clear()
    stop = written(whole)[3][9]
    found = no_eos.prefill("the").fork(5, seed=0).decode(stop, max_new_tokens=30)
    firsts = [row.index(stop) + 1 if stop in row else 30 for row in written(whole)]
    assert written(found) == [row[:n] for row, n in zip(written(whole), firsts, strict=True)]
    assert runs[0] == min(firsts) - 1
    runs.clear()
    no_eos.prefill("the").fork(3, seed=0).decode(max_new_tokens=[4, 9, 9])
    assert runs == [3, 5]


def test_steps_take_no_longer_than_one_may_wait(
    no_eos: Engine, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi_step, "SECONDS", 1e-9)
    no_eos.prefill("the").fork(2, seed=0).decode(max_new_tokens=9)
    assert runs == []


def test_whoever_looks_at_every_step_sees_every_step(no_eos: Engine, runs: list[int]) -> None:
    seen = []
    paths = no_eos.prefill("the").fork(2, seed=0)
    paths.decode(max_new_tokens=9, stop_if=lambda paths, _: seen.append(paths.lengths[0]))
    assert runs == [] and len(set(seen)) == 8


def test_a_row_of_nan_ends_its_path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Engine.from_pretrained(tiny_models.make("llama", tmp_path), memory="8MiB")
    other.eos = []
    rows = written(other.prefill([3, 5]).fork(6, seed=0).decode(max_new_tokens=20))
    at, bad = next(
        (at, token)
        for at, token in enumerate(rows[2])
        if at > 3 and token not in rows[2][:at] and not any(token in r for r in rows[:2] + rows[3:])
    )
    other.model.model.get_input_embeddings().weight.data[bad] = torch.nan
    taken = engines.count_steps(other, monkeypatch)
    paths = other.prefill([3, 5]).fork(6, seed=0).decode(max_new_tokens=20)
    assert paths.ended == ["length"] * 2 + ["invalid"] + ["length"] * 3
    assert written(paths) == [row[: at + 1] if row is rows[2] else row for row in rows]
    assert taken[0] == at + 1 and sum(taken) == 19
    check_engine(other, paths)


def test_pages_that_run_out_for_many_steps_serve_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.make("llama", tmp_path)
    wanted = None
    for memory, most in (("8MiB", 1), (9 * 16 * 2 * 2 * 2 * 16 * 4, 16)):
        other = Engine.from_pretrained(folder, memory=memory)
        other.eos = []
        monkeypatch.setattr(multi_step, "STEPS", most)
        paths = other.prefill([3] * 16).fork(4, seed=0)
        if wanted is None:
            wanted = written(paths.decode(max_new_tokens=33))
            continue
        assert other.free_pages == 8  # two for each path: room for the 32 tokens that are run
        assert written(paths.decode(max_new_tokens=33)) == wanted
        assert other.free_pages == 0
        with pytest.raises(OutOfPages):
            paths.decode(max_new_tokens=5)
        assert written(paths) == wanted
        check_engine(other, paths)


def test_steps_that_fail_change_nothing(no_eos: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    root = no_eos.prefill("the").fork(3, seed=0)
    expected = state_of(root.fork(1).decode(max_new_tokens=20))[:5]
    paths = root.fork(1).decode(max_new_tokens=2)
    steps = no_eos.model.steps
    assert steps is not None

    def failing(*args: Any, **named: Any) -> Any:
        steps(*args, **named)
        raise RuntimeError("no more")

    before, free = written(paths), no_eos.free_pages
    monkeypatch.setattr(no_eos.model, "steps", failing)
    with pytest.raises(RuntimeError, match="no more"):
        paths.decode(max_new_tokens=18)
    # the first step was one alone
    assert [row[:2] for row in written(paths)] == before
    assert {len(row) for row in written(paths)} == {3}
    assert no_eos.free_pages == free
    check_engine(no_eos, root, paths)
    monkeypatch.setattr(no_eos.model, "steps", steps)
    assert equal(state_of(paths.decode(max_new_tokens=17))[:5], expected)


def test_ctrl_c_between_steps_waits_for_the_last(
    no_eos: Engine, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, steps = no_eos.prefill("the").fork(3, seed=0), no_eos.model.steps
    whole = written(paths.fork(1).decode(max_new_tokens=40))
    runs.clear()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def pressed(*args: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return steps(*args, **named)

    monkeypatch.setattr(no_eos.model, "steps", pressed)
    made = paths.fork(1)
    try:
        with pytest.raises(KeyboardInterrupt):
            made.decode(max_new_tokens=40)
    finally:
        signal.signal(signal.SIGINT, before)
    assert runs == [16] and written(made) == [row[:17] for row in whole]
    monkeypatch.setattr(no_eos.model, "steps", steps)
    assert written(made.decode(max_new_tokens=23)) == whole


def test_steps_on_record_are_skipped_and_made_up_for(no_eos: Engine, runs: list[int]) -> None:
    """A source that keeps what was drawn, and one that gives it in place of the model."""
    kept: list[Any] = []

    def keep(rows: Any, most: int, draw: Callable[[], Any]) -> Any:
        kept.append(draw())
        assert len(kept[-1][0]) <= most
        return kept[-1]

    first = no_eos.prefill("the steps").fork(3, seed=0)
    first.decode(max_new_tokens=[9, 20, 20], source=keep)
    assert [len(tokens) for tokens, _ in kept] == [1, 8, 11]
    expected = [state_of(first), state_of(first.decode(max_new_tokens=20))]
    first.free()
    second = no_eos.prefill("the steps").fork(3, seed=0)
    given = iter(kept)

    def give(rows: Any, most: int, draw: Callable[[], Any]) -> Any:
        drawn = next(given)
        replay.skip(second, rows, drawn)
        return drawn

    runs.clear()
    second.decode(max_new_tokens=[9, 20, 20], source=give)
    assert runs == [] and second.hollow
    assert equal(state_of(second), expected[0])
    assert equal(state_of(second.decode(max_new_tokens=20)), expected[1])


def test_steps_on_record_that_cannot_have_been(no_eos: Engine) -> None:
    values = np.zeros((2, 3), np.float32)
    drawn = np.full((2, 3), 5, np.int32), {"logprobs": values}
    paths = no_eos.prefill("the").fork(3, seed=0)
    free = no_eos.free_pages
    with pytest.raises(ValueError, match="drawn: got 2 steps, expected 1"):
        replay.skip(paths, np.arange(3), drawn)  # nothing waits to be run
    paths.append([[4], [4, 5], [4]])
    with pytest.raises(ValueError, match="drawn: got 2 steps, expected 1"):
        replay.skip(paths, np.arange(3), drawn)
    assert no_eos.free_pages == free and not paths.hollow


def test_models_without_a_pass_of_ours_take_single_steps(tmp_path: Path) -> None:
    other = Engine.from_pretrained(tiny_models.make("gemma2", tmp_path), memory="8MiB")
    assert other.model.steps is None
    paths = other.prefill([3, 5]).fork(2, seed=0).decode(max_new_tokens=6)
    assert paths.tokens.shape[1] == 6 or "eos" in paths.ended


def test_positions_past_what_was_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of rotary embeddings grows before the steps that need it."""
    folder, found = tiny_models.make("llama", tmp_path), []
    for size in (5, 4096):
        monkeypatch.setattr("pyttc.engine.llama.POSITIONS", size)
        paths = Engine.from_pretrained(folder, memory="8MiB").prefill([3, 5]).fork(2)
        found.append(state_of(paths.decode(max_new_tokens=40, temperature=0.0)))
    assert equal(*found)


def test_what_does_not_fit_is_refused(no_eos: Engine) -> None:
    paths = no_eos.prefill("the").fork(2, seed=0).decode(max_new_tokens=1)
    with paths._room(np.arange(2), np.full(2, 3)) as leaves:
        tree = no_eos._trees.steps(leaves, 0)
        token = torch.tensor([5, 6])
        at = torch.from_numpy(no_eos.cache.lengths(leaves) - 3)
        whole = torch.zeros(2, dtype=torch.int64)
        sampling: dict[str, Any] = {
            **dict(seed=whole, path_ids=whole, temperature=whole.double(), top_k=whole),
            **dict(top_p=whole.double(), min_p=whole.double(), mask=None),
        }
        ends = torch.zeros(no_eos.model.vocab, dtype=torch.bool)
        pages = no_eos.pool.k, no_eos.pool.v

        def steps(count: int = 3, tokens: Any = token, ends: Any = ends, **other: Any) -> Any:
            options = {**sampling, **other}
            go = no_eos.model.steps
            assert go is not None
            return go(tokens, at, pages, tree, count, ends, 0, **options)

        assert len(steps()[1].tokens) == 3
        for wrong in (
            {"count": 0},
            {"tokens": torch.tensor([5])},
            {"tokens": torch.tensor([5, 6, 7])},
            {"count": 400},
            {"ends": ends[1:]},
            {"ends": ends.long()},
            {"path_ids": whole[:1]},
            {"temperature": -torch.ones(2, dtype=torch.float64)},
            {"tokens": torch.tensor([5, no_eos.model.vocab])},
        ):
            with pytest.raises(ValueError, match="fit|temperature: element 0|tokens: element 1"):
                steps(**wrong)
        no_eos.cache.take_back(leaves, leaves, np.full(2, 3))
        paths.leaves[:] = leaves


def test_threads_show_nowhere(no_eos: Engine) -> None:
    found = []
    for count in (1, 2, 3):
        with threads(count):
            paths = no_eos.prefill([7] * 40, salt=None).fork(5, seed=0)
            found.append(state_of(paths.decode(max_new_tokens=30))[:6])
    assert equal(found[0], found[1]) and equal(found[0], found[2])


@pytest.mark.parametrize("level", ["generic", "avx2"])
def test_other_instruction_sets(level: str) -> None:
    run_below(level, __file__, "bits_and_the_bill or first_path")


def test_the_seconds_of_a_call_are_told_apart(no_eos: Engine, monkeypatch: Any) -> None:
    spent, steps = [], _C.llama_steps

    def timed(*args: Any, **named: Any) -> Any:
        done = steps(*args, **named)
        spent.append(done)
        return done

    monkeypatch.setattr(_C, "llama_steps", timed)
    no_eos.prefill("the").fork(3, seed=0).decode(max_new_tokens=12)
    assert spent[0][0] == 11 and len(spent[0][1]) == 4 and min(spent[0][1]) > 0
