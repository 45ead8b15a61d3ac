"""The verbs of paths: fork, append, select, cat, score, cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyttc.engine import Engine, LinearHead, Paths, pool
from pyttc.ops import copy_pages
from tests import engines, tiny_models
from tests.common import fastest, written
from tests.pages import check_engine

engine, no_eos, nothing_leaks = engines.poisoned, engines.no_eos, engines.nothing_leaks


def test_text_goes_in_and_out(engine: Engine) -> None:
    paths = engine.prefill(["the steps; then", "and the last"]).append([" step", ""])
    assert paths.text() == [" step", ""]
    assert paths.text(prompt=True) == ["the steps; then step", "and the last"]


def test_done_paths_rest_until_they_are_lengthened(engine: Engine) -> None:
    paths = engine.prefill("the steps").fork(200, seed=2).decode(max_new_tokens=20)
    done = np.flatnonzero(paths.done)
    assert done.size and all(row[-1] == 1 for row in np.array(written(paths), object)[done])
    before = written(paths)
    paths.decode(max_new_tokens=2)
    after = written(paths)
    assert all((a == b) == d for a, b, d in zip(before, after, paths.done, strict=True) if d)
    ends = paths.select(done[:2]).append("then", keep_eos=False)
    assert not ends.done.any()
    assert [t.endswith("then") for t in ends.text()] == [True] * 2
    assert all(1 not in row for row in written(ends))


def test_forks_of_forks_are_nested_and_distinct(no_eos: Engine) -> None:
    def tree(width: int, twigs: int) -> Any:
        first = no_eos.prefill("the steps").fork(width, seed=3).decode(max_new_tokens=5)
        return first, first.fork(twigs).decode(max_new_tokens=5)

    wide, wide_twigs = tree(8, 4)
    narrow, narrow_twigs = tree(3, 2)
    assert written(narrow) == written(wide)[:3]
    big = np.array(written(wide_twigs)).reshape(8, 4, 10)
    assert np.array(written(narrow_twigs)).reshape(3, 2, 10).tolist() == big[:3, :2].tolist()
    assert len(set(wide_twigs.path_ids.tolist())) == 32
    assert wide_twigs.parents.tolist() == np.repeat(np.arange(8), 4).tolist()
    again = wide.fork(np.array([2, 0, 0, 1, 0, 0, 0, 4])).decode(max_new_tokens=5)
    picked = [big[0, 0], big[0, 1], big[3, 0], *big[7]]
    assert written(again) == [row.tolist() for row in picked]
    # a forked path goes on as if it had not been
    assert written(wide.decode(max_new_tokens=5)) == written(tree(8, 1)[0].decode(max_new_tokens=5))


def test_select_frees_reorders_and_repeats(no_eos: Engine) -> None:
    root = no_eos.prefill("the steps; then the")
    start = no_eos.free_pages
    paths = root.fork(8, seed=0).decode(max_new_tokens=20)
    rows = written(paths)
    chosen = paths.select(torch.tensor([6, 1, 1, 6, 6]))
    assert chosen is paths and paths.parents.tolist() == [6, 1, 1, 6, 6]
    assert written(paths) == [rows[i] for i in (6, 1, 1, 6, 6)]
    assert len(set(paths.path_ids.tolist())) == 5
    more = written(paths.decode(max_new_tokens=12))
    assert len({tuple(row) for row in more}) == 5
    whole = no_eos.prefill("the steps; then the").fork(8, seed=0).decode(max_new_tokens=32)
    assert more[0] == written(whole)[6] and more[1] == written(whole)[1]
    del whole
    paths.select(np.array([False] * 5))
    assert len(paths) == 0 and no_eos.free_pages == start


def test_paths_of_several_objects_decode_as_one(no_eos: Engine) -> None:
    def frontier() -> list[Paths]:
        """Paths of many kinds: untouched, decoded, lengthened, forked, scored and none at all."""
        root = no_eos.prefill(["the steps; then", [3] * 40], seed=2)
        wide = root.fork([3, 2], seed=1).decode(max_new_tokens=[3, 20, 7, 1, 9])
        deep = wide.fork([2, 0, 0, 0, 1])
        deep.append(["then", "", "the last"]).decode(max_new_tokens=5, confidence=2)
        deep.hidden()
        return [root.fork(2, start=8), wide, deep, deep.fork(2), wide.fork(0)]

    parts, same = frontier(), frontier()
    one = Paths.cat(parts)
    for name in ("parents", "path_ids", "prompt", "lengths", "depth", "seeds", "ends"):
        assert getattr(one, name).tolist() == [x for p in parts for x in getattr(p, name).tolist()]
    assert one.text(prompt=True) == [text for part in parts for text in part.text(prompt=True)]
    at = np.cumsum([0, *map(len, parts)])

    def equal(each: list[Paths]) -> None:
        for part, begin, end in zip(each, at[:-1], at[1:], strict=True):
            width = part.tokens.shape[1]
            for name in ("tokens", "logprobs", "entropy", "confidence"):
                whole = getattr(one, name)[begin:end]
                assert torch.equal(
                    whole[:, :width].nan_to_num(9), getattr(part, name).nan_to_num(9)
                )
            assert torch.equal(one.hidden()[begin:end], part.hidden())

    equal(parts)
    one.decode(max_new_tokens=12, confidence=2)
    for part in (*parts, *same):  # the originals go on, too
        part.decode(max_new_tokens=12, confidence=2)
    equal(parts)
    equal(same)
    check_engine(no_eos, one, *parts, *same)
    free = no_eos.free_pages
    parts.clear()
    assert no_eos.free_pages > free and len(one.select([0, 3])) == 2
    one.fork(2).decode(max_new_tokens=2)
    wide = no_eos.prefill("the").fork(100).decode(max_new_tokens=1)
    wide.hidden()
    nodes = [wide.fork(row) for row in np.eye(100, dtype=int)]
    assert Paths.cat(nodes)._hidden.shape[0] == 100  # no node brings those of the others along


def test_append_equals_a_prompt_with_the_same_tokens(no_eos: Engine) -> None:
    # 40 tokens each, so that what is appended lies behind full pages of the path's own
    paths = no_eos.prefill("the").fork(3, seed=0).decode(max_new_tokens=40)
    paths.append([" next", "", "; and then the steps"])
    hidden = paths.hidden()
    for i, row in enumerate(written(paths)):
        same = no_eos.prefill([*paths.prompts[0].tolist(), *row], salt=None)
        assert torch.equal(same.hidden()[0], hidden[i])


def test_a_linear_head_scores_without_a_pass_of_its_own(
    no_eos: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    LinearHead(torch.randn(1, 64), 0.5).save(str(tmp_path / "prm.safetensors"))
    head = LinearHead.from_file(str(tmp_path / "prm.safetensors"))
    ran = []
    run, taken = no_eos.run, engines.count_steps(no_eos, monkeypatch)
    monkeypatch.setattr(no_eos, "run", lambda *a: ran.append(a[2].sum()) or run(*a))
    paths = no_eos.prefill("the steps").fork(6, seed=0).decode(max_new_tokens=5)
    scores = paths.score(head)
    paths.decode(max_new_tokens=5)
    # every token but each path's last went through the model once
    assert sum(ran) + 6 * sum(taken) == paths.prompts[0].size + 6 * 9
    model = tiny_models.plain_model(no_eos.model.config.name_or_path)
    for i, row in enumerate(written(paths)):
        ids = torch.tensor([[*paths.prompts[0].tolist(), *row[:5]]])
        with torch.inference_mode():
            hidden = model.base_model(ids).last_hidden_state[0, -1]
        torch.testing.assert_close(
            scores[i], torch.sigmoid(hidden @ head.weight + 0.5), atol=1e-4, rtol=1e-4
        )
    assert torch.equal(
        scores[2:4],
        no_eos.prefill("the steps").fork(2, seed=0, start=2).decode(max_new_tokens=5).score(head),
    )


def test_cost_has_two_columns(no_eos: Engine) -> None:
    root = no_eos.prefill([3] * 100)
    paths = root.fork(10, seed=0).decode(max_new_tokens=11)
    ran, alone = paths.cost.ran, paths.cost.unshared
    assert (ran.prefilled, ran.decoded) == (100, 110)
    assert (alone.prefilled, alone.decoded) == (1000, 110)
    prices = no_eos.prices
    passes = [(0, 100)] + [(100 + i, 1) for i in range(10) for _ in range(10)]
    flops = sum(prices.pass_flops(np.array([b]), np.array([c])) for b, c in passes)
    assert ran.flops == pytest.approx(flops + 101 * prices.head)
    read = 100 + sum(100 + 10 * (i + 1) + 4 * 9 for i in range(10))  # the partial page is copied
    assert ran.kv_bytes_read == read * prices.kv_bytes
    assert alone.kv_bytes_held == 10 * 7 * no_eos.pool.page_bytes
    assert ran.kv_bytes_held == (7 + 10) * no_eos.pool.page_bytes
    assert paths.cost is root.cost and paths.cost.seconds == ran.seconds > 0
    assert all(field in str(paths.cost) for field in ("unshared", *vars(ran)))
    # the estimate of the time: what is more, at the best rates there have been
    rates = no_eos.rates
    more = (alone.flops - ran.flops) / rates.flops
    more += (alone.kv_bytes_read - ran.kv_bytes_read) / rates.bytes
    assert alone.seconds == pytest.approx(ran.seconds + more) and more > 0
    assert ran.seconds * rates.flops >= ran.flops  # nothing ran faster


def test_sharing_holds_no_more_than_not_sharing(no_eos: Engine) -> None:
    paths = no_eos.prefill("the").fork(64, seed=0).decode(max_new_tokens=4)  # a part of a page each
    ran, alone = paths.cost.ran, paths.cost.unshared
    assert ran.kv_bytes_held == alone.kv_bytes_held == 64 * no_eos.pool.page_bytes


def test_scorers_are_on_the_bill(no_eos: Engine) -> None:
    paths = no_eos.prefill("the steps").fork(6, seed=0).decode(max_new_tokens=5)
    ran, alone, prices = paths.cost.ran, paths.cost.unshared, no_eos.prices
    before = ran.flops, alone.flops, ran.seconds
    paths.score(LinearHead(torch.ones(64)))
    length = int(paths.lengths[0]) - 1
    last = prices.pass_flops(np.full(6, length), np.ones(6, np.int64)) + 2 * 6 * 64
    assert ran.flops - before[0] == pytest.approx(last) == alone.flops - before[1]

    def slow(paths: Any) -> list[float]:
        time.sleep(0.05)
        return [0.0] * len(paths)

    before = ran.flops, alone.flops, ran.seconds
    paths.score(slow)
    assert ran.seconds >= before[2] + 0.05 and ran.flops == before[0]
    # neither a caller's stop_if nor what is between calls is
    before = ran.flops, alone.flops, ran.seconds
    paths.decode(max_new_tokens=3, stop_if=lambda *_: time.sleep(0.5))
    assert ran.seconds < before[2] + 1


def test_a_failed_pass_changes_nothing(no_eos: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = no_eos.prefill("the steps; then").fork(4, seed=0).decode(max_new_tokens=3)
    used = no_eos.kv_bytes
    rows = written(paths)

    def broken(*_: Any) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of luck"):
        patch.setattr(no_eos.model, "hidden", broken)
        paths.append("and the last step. " * 5).decode(max_new_tokens=3)
    assert no_eos.kv_bytes == used
    paths.decode(max_new_tokens=4)
    same = no_eos.prefill("the steps; then").fork(4, seed=0).decode(max_new_tokens=3)
    assert written(same) == rows
    same.append("and the last step. " * 5).decode(max_new_tokens=4)
    assert written(same) == written(paths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"until": ""}, "until"),
        ({"until": 1.5}, "until"),
        ({"until": b"x"}, "until"),
        ({"until": bytearray(b"x")}, "until"),
        ({"until": [b"x"]}, "until"),
        ({"until": [None]}, "until"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"max_new_tokens": [1, 2]}, "max_new_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 2.0}, "top_p"),
        ({"min_p": [0.0, -1.0, 0.0]}, "min_p"),
        ({"mask": [1]}, "mask"),
        ({"mask": torch.ones(3, 10)}, "mask"),
        ({"mask": torch.ones(2, 10, dtype=torch.int32)}, "mask"),
        ({"confidence": -1}, "confidence"),
        ({"confidence": 321}, "confidence"),
        ({"stop_if": 3}, "stop_if"),
        ({"until": [999]}, "until"),
        ({"temperature": [1.0, 2.0]}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_wrong_arguments_are_named(no_eos: Engine, arguments: Any, message: str) -> None:
    paths = no_eos.prefill("the").fork(3)
    with pytest.raises((ValueError, TypeError), match=f"^{message}: got|^{message}: element"):
        paths.decode(**{"max_new_tokens": 2, **arguments})
    assert written(paths) == [[], [], []]


WRONG: list[tuple[str, Any]] = [
    ("prompts", lambda e, p: e.prefill([])),
    ("prompts", lambda e, p: e.prefill([["the"]])),
    ("prompts", lambda e, p: e.prefill(["the", []])),
    ("prompts", lambda e, p: e.prefill(["the", None])),
    ("prompts", lambda e, p: e.prefill(3)),
    ("prompts", lambda e, p: e.prefill([0.5])),
    ("prompts", lambda e, p: e.prefill([5, 320])),
    ("prompts", lambda e, p: e.prefill([3] * 5001)),
    ("seed", lambda e, p: e.prefill("the", seed=0.5)),
    ("seed", lambda e, p: p.fork(2, seed="a")),
    ("seed", lambda e, p: p.fork(2, seed=2**64)),
    ("n", lambda e, p: p.fork(-1)),
    ("n", lambda e, p: p.fork(1.5)),
    ("n", lambda e, p: p.fork([1, 2])),
    ("start", lambda e, p: p.fork(2, start=-1)),
    ("text", lambda e, p: p.append(None)),
    ("text", lambda e, p: p.append(["a", "b"])),
    ("text", lambda e, p: p.append([[5], [320], []])),
    ("text", lambda e, p: p.append([3] * 5000)),
    ("indices", lambda e, p: p.select([3])),
    ("indices", lambda e, p: p.select([-1])),
    ("indices", lambda e, p: p.select([0.5])),
    ("indices", lambda e, p: p.select(None)),
    ("indices", lambda e, p: p.select([True, False])),
    ("paths", lambda e, p: Paths.cat([])),
    ("paths", lambda e, p: Paths.cat(p)),
    ("paths", lambda e, p: Paths.cat([p, None])),
    ("paths", lambda e, p: Paths.cat([p, e.prefill("the")])),
    ("scorer", lambda e, p: p.score(3)),
    ("scorer", lambda e, p: p.score(lambda paths: [1.0])),
    ("scorer", lambda e, p: p.score(lambda paths: "good")),
    ("weight", lambda e, p: p.score(LinearHead(torch.ones(63)))),
    ("weight", lambda e, p: LinearHead(torch.ones(2, 3))),
    ("bias", lambda e, p: LinearHead(torch.ones(3), torch.ones(2))),
    ("activation", lambda e, p: LinearHead(torch.ones(3), activation="relu")),
    ("paths", lambda e, p: e.required_pages([4], paths=0)),
    ("new_tokens", lambda e, p: e.required_pages([4], new_tokens=-1)),
    ("memory", lambda e, p: Engine(e.model, memory="much")),
    ("memory", lambda e, p: Engine(e.model, memory=8)),
    ("memory", lambda e, p: Engine(e.model, memory=0.5)),
    ("page_size", lambda e, p: Engine(e.model, memory="1MiB", page_size=0)),
    ("page_size", lambda e, p: Engine(e.model, memory="1MiB", page_size=257)),
    ("device", lambda e, p: Engine.from_pretrained("x", device="toaster")),
    ("device", lambda e, p: Engine.from_pretrained("x", device="cuda:99")),
    ("dtype", lambda e, p: Engine.from_pretrained("x", dtype=torch.float64)),
    ("source", lambda e, p: Engine.from_pretrained("/nowhere/at/all")),
]


def test_wrong_arguments_of_every_verb_are_named(no_eos: Engine) -> None:
    paths = no_eos.prefill("the").fork(3)
    held = no_eos.kv_bytes
    for name, call in WRONG:
        with pytest.raises((ValueError, TypeError, IndexError, OSError), match=f"^{name}: g"):
            call(no_eos, paths)
        assert len(paths) == 3 and written(paths) == [[], [], []]
        assert no_eos.kv_bytes == held
    paths.decode(max_new_tokens=2)


def test_fork_of_256_paths_takes_microseconds(no_eos: Engine) -> None:
    parent = no_eos.prefill([3] * 1000).fork(1, seed=0).decode(max_new_tokens=9)
    held = no_eos.kv_bytes
    forks = []

    def fork() -> None:
        forks.append(parent.fork(256))

    def free() -> None:
        assert no_eos.kv_bytes == held
        forks.pop().free()

    assert fastest(fork, 100e-6, after=free) < 100e-6


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pages of each call of copy_pages."""
    calls: list[int] = []

    def counted(k: Any, v: Any, source: torch.Tensor, target: torch.Tensor) -> None:
        calls.append(source.numel())
        copy_pages(k, v, source, target)

    monkeypatch.setattr(pool, "copy_pages", counted)
    return calls


def test_a_fork_moves_partial_pages_only_in_one_call(no_eos: Engine, copies: list[int]) -> None:
    # a path's last token is stored by the pass that follows it: 1,005 tokens here, the last 13 of them in
    # a page that is partly full, and 1,008 there, which are whole pages
    for tokens, moved in ((6, [256]), (9, [])):
        parent = no_eos.prefill([3] * 1000).fork(1, seed=0).decode(max_new_tokens=tokens)
        copies.clear()
        forks = parent.fork(256)
        assert copies == []
        forks.decode(max_new_tokens=3)
        assert copies == moved


def test_reordering_moves_no_keys(no_eos: Engine, copies: list[int]) -> None:
    paths = no_eos.prefill("the steps; then the").fork(16, seed=0).decode(max_new_tokens=20)
    copies.clear()
    k, v = no_eos.pool.k.clone(), no_eos.pool.v.clone()
    paths.select(torch.randperm(16, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(k.view(torch.int32), no_eos.pool.k.view(torch.int32))
    assert torch.equal(v.view(torch.int32), no_eos.pool.v.view(torch.int32))
    free = no_eos.free_pages
    paths.select(np.arange(0, 16, 2))
    assert no_eos.free_pages > free  # at once, not when somebody needs pages
    paths.decode(max_new_tokens=3)
    assert copies == []
