"""Numbers that no machine could serve, at every public entry: refused by name, with nothing allocated."""

from __future__ import annotations

import gc
import re
import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pyttc
from pyttc.engine import Engine, OutOfPages, Paths
from tests import tiny_models
from tests.pages import check_engine

HUGE = [2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 10**30, 10**400]
NEGATIVE = [-1, -(2**31), -(2**63), -(10**30)]
REALS = [1e30, 1.5, float("inf"), float("-inf"), float("nan")]
NUMBERS = HUGE + NEGATIVE + REALS
LARGE = [n for n in HUGE if n >= 2**63]  # where a seed or a limit may be any number of 64 bits


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tiny_models.make("llama", tmp_path_factory.mktemp("llama"), num_hidden_layers=1)
    return Engine.from_pretrained(folder, memory="1MiB")


def tree(length: Any = 1, page: Any = 0, leaf: Any = 0, parent: Any = -1, size: Any = 16) -> Any:
    return pyttc.PrefixTree([parent], [[page]], [length], [leaf], size)


def one(paths: Paths, **options: Any) -> Paths:
    return paths.decode(max_new_tokens=1, **options)


# the argument, a call with it, and the numbers to refuse
Call = Callable[[Engine, Paths, Any], Any]
ENTRIES: list[tuple[str, Call, list[Any]]] = [
    ("seed", lambda e, p, v: e.prefill([3], seed=v), LARGE + REALS),
    ("prompts", lambda e, p, v: e.prefill([v]), NUMBERS),
    ("memory", lambda e, p, v: Engine(e.model, memory=v), HUGE[3:] + NEGATIVE + REALS),
    ("page_size", lambda e, p, v: Engine(e.model, memory="1MiB", page_size=v), NUMBERS),
    ("max_paths", lambda e, p, v: Engine(e.model, memory="1MiB", max_paths=v), LARGE + NEGATIVE),
    ("prompts", lambda e, p, v: e.required_pages([v]), LARGE + NEGATIVE + REALS),
    ("paths", lambda e, p, v: e.required_pages([20], v), LARGE + NEGATIVE + REALS),
    ("new_tokens", lambda e, p, v: e.required_pages([20], 2, v), LARGE + NEGATIVE + REALS),
    ("n", lambda e, p, v: p.fork(v), NUMBERS),
    ("n", lambda e, p, v: p.fork([v, 1]), NUMBERS),
    ("start", lambda e, p, v: p.fork(2, start=v), [2**63 - 1, *LARGE, *NEGATIVE, *REALS]),
    ("seed", lambda e, p, v: p.fork(2, seed=v), LARGE + REALS),
    ("max_new_tokens", lambda e, p, v: p.decode(max_new_tokens=v), LARGE + NEGATIVE + REALS),
    (
        "temperature",
        lambda e, p, v: one(p, temperature=v),
        [10**30, 10**400, *NEGATIVE, *REALS[2:]],
    ),
    ("top_k", lambda e, p, v: one(p, top_k=v), LARGE + REALS),
    ("top_k", lambda e, p, v: one(p, top_k=[v, 1]), LARGE + REALS),
    ("top_p", lambda e, p, v: one(p, top_p=v), NUMBERS),
    ("top_p", lambda e, p, v: one(p, top_p=[0.5, v]), NUMBERS),
    ("min_p", lambda e, p, v: one(p, min_p=v), NUMBERS),
    ("confidence", lambda e, p, v: one(p, confidence=v), NUMBERS),
    ("until", lambda e, p, v: one(p, until=v), NUMBERS),
    ("text", lambda e, p, v: p.append([v]), NUMBERS),
    ("indices", lambda e, p, v: p.select([v]), NUMBERS),
    ("flops", lambda e, p, v: p.spend_flops(v), NEGATIVE + REALS[2:]),
    ("lengths", lambda e, p, v: tree(length=v), HUGE[1:] + NEGATIVE + REALS),
    ("pages", lambda e, p, v: tree(page=v), HUGE[1:] + [-(2**63), *REALS]),
    ("leaves", lambda e, p, v: tree(leaf=v), HUGE + NEGATIVE[1:] + REALS),
    ("parents", lambda e, p, v: tree(parent=v), HUGE + NEGATIVE[1:] + REALS),
    ("page_size", lambda e, p, v: tree(size=v), NUMBERS),
]
REFUSALS = (TypeError, ValueError, IndexError)


@pytest.mark.parametrize(("name", "call", "numbers"), ENTRIES)
def test_absurd_numbers_are_refused_by_name(
    name: str, call: Call, numbers: list[Any], engine: Engine
) -> None:
    gc.collect()  # what earlier refusals held
    paths = engine.prefill([3] * 20).fork(2)
    before, free = peak(), engine.free_pages
    for value in numbers:
        with pytest.raises(REFUSALS) as refusal:
            call(engine, paths, value)
        assert re.match(rf"{name}\b", str(refusal.value)), (value, refusal.value)
    assert peak() - before < 64 << 20
    assert len(paths) == 2 and (paths.lengths == 20).all() and engine.free_pages == free


def peak() -> int:
    """The most bytes this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize(
    "memory", ["99999999TiB", "1e308TiB", "infGiB", "nanGiB", "-1GiB", "1e400KiB"]
)
def test_memory_that_no_machine_has_is_refused(memory: str, engine: Engine) -> None:
    with pytest.raises(ValueError, match="^memory: got"):
        Engine(engine.model, memory=memory)


def test_paths_are_limited(engine: Engine) -> None:
    few = Engine(engine.model, memory="1MiB", max_paths=10)
    paths = few.prefill([[3] * 5, [4] * 5])
    assert len(paths.fork(5)) == 10 and len(paths.fork([0, 10])) == 10
    for refused in (6, [10, 1], [2**40, 2**40]):
        with pytest.raises(ValueError, match="^n: got .* at most 10, max_paths"):
            paths.fork(refused)
    with pytest.raises(ValueError, match="^indices: got 11, .* max_paths"):
        paths.select([0] * 11)
    with pytest.raises(ValueError, match="^prompts: got 11, .* max_paths"):
        few.prefill([[3]] * 11)
    check_engine(few, paths)


def test_prompts_are_limited(engine: Engine) -> None:
    with pytest.raises(ValueError, match="^prompts: got one of 5001 tokens, expected 1 to 5000"):
        engine.prefill([3] * 5001)
    with pytest.raises(ValueError, match="^prompts: got a text of .* characters"):
        engine.prefill("x" * (256 * 5000 + 1))
    with pytest.raises(ValueError, match="^text: got a text of .* characters"):
        engine.prefill([3]).append("x" * (256 * 5000 + 1))
    free = engine.free_pages
    with pytest.raises(OutOfPages):
        engine.prefill([[3] * 20] * 1000)
    assert engine.free_pages == free


def test_a_page_id_of_more_than_32_bits_is_not_another_page() -> None:
    # 2**32 was page 0 once the ids were narrowed
    for pages in ([[2**32]], [torch.tensor([2**32])]):
        with pytest.raises(ValueError, match="^pages: got 4294967296"):
            pyttc.PrefixTree([-1], pages, [1], [0], 16)
