"""The verbs of paths: fork, decode with stops, append, select, score, cost."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyttc.engine as engine_package
from pyttc.engine import Engine, LinearHead, Paths, pool
from pyttc.ops import copy_pages
from tests import tiny_models
from tests.common import fastest
from tests.pages import check_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tiny_models.make("llama", tmp_path_factory.mktemp("llama"))
    engine = Engine.from_pretrained(folder, memory="32MiB")
    engine.pool.k.fill_(torch.nan)
    engine.pool.v.fill_(torch.nan)
    return engine


@pytest.fixture
def no_eos(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(engine, "eos", [])
    return engine


@pytest.fixture(autouse=True)
def nothing_leaks(engine: Engine) -> Any:
    yield
    import gc

    gc.collect()
    assert engine.free_pages == engine.pool.pages and engine.cache.nodes == 1


def written(paths: Any) -> list[list[int]]:
    return [[t for t in row if t >= 0] for row in paths.tokens.tolist()]


def test_text_goes_in_and_out(engine: Engine) -> None:
    paths = engine.prefill(["the steps; then", "and the last"]).append([" step", ""])
    assert paths.text() == [" step", ""]
    assert paths.text(prompt=True) == ["the steps; then step", "and the last"]


def test_stop_strings_end_a_path_with_the_token_that_completes_them(no_eos: Engine) -> None:
    stops = ["; ", "e", "st", "\n\n"]
    paths = no_eos.prefill("the steps").fork(48, seed=1)
    paths.decode(until=stops, max_new_tokens=40)
    free = no_eos.prefill("the steps").fork(48, seed=1).decode(max_new_tokens=40)
    tokenizer = no_eos.tokenizer
    seen = set()
    for row, whole, end in zip(written(paths), written(free), paths.ended, strict=True):
        # the plain way: the shortest run of tokens whose text holds a stop
        cut = next(
            (n for n in range(1, 41) if any(s in tokenizer.decode(whole[:n]) for s in stops)), 41
        )
        assert row == whole[:cut]
        assert end == ("until" if cut < 41 else "length")
        seen.add(end)
    assert seen == {"until", "length"} or cut < 41


def test_stop_strings_span_tokens(no_eos: Engine) -> None:
    ids = [no_eos.tokenizer.convert_tokens_to_ids(t) for t in ("x", "q", "z")]
    words = torch.zeros(10, dtype=torch.int32)
    for token in ids:
        words[token // 32] |= 1 << token % 32
    paths = no_eos.prefill("the").fork(32, seed=3)
    paths.decode(until="xqz", max_new_tokens=60, mask=words)
    for text, end in zip(paths.text(), paths.ended, strict=True):
        assert text.endswith("xqz") == ("xqz" in text) == (end == "until")
        assert set(text) <= set("xqz")
    assert "until" in paths.ended and no_eos.tokenizer.convert_tokens_to_ids("xq") is None


def test_a_text_of_eos_ends_a_path_for_good_whatever_calls_and_forks_it_spans(
    no_eos: Engine,
) -> None:
    ids = [no_eos.tokenizer.convert_tokens_to_ids(t) for t in ("x", "q", "z")]
    words = torch.zeros(10, dtype=torch.int32)
    for token in ids:
        words[token // 32] |= 1 << token % 32
    how: dict[str, Any] = {"eos": "xqz", "mask": words}
    root = no_eos.prefill("the")
    whole = root.fork(32, seed=3).decode(max_new_tokens=60, **how)
    parts = root.fork(32, seed=3)
    for _ in range(30):
        parts.decode(max_new_tokens=2, until="q", **how)
    for text, other, end in zip(whole.text(), parts.text(), whole.ended, strict=True):
        assert text.endswith("xqz") == ("xqz" in text) == (end == "eos")
        assert other == text[: len(other)]
    assert set(parts.ended) == {"eos", "until", "length"}
    assert parts.done.tolist() == [end == "eos" for end in parts.ended]
    forked = root.append("xq").fork(32).decode(max_new_tokens=1, **how)
    assert [end == "eos" for end in forked.ended] == [t == "xqz" for t in forked.text()]
    assert "eos" in forked.ended
    forced = root.append("z;").fork(32).decode(max_new_tokens=1, **how)  # behind "xqz;"
    assert "eos" not in forced.ended
    with pytest.raises(TypeError, match="^eos: got"):
        root.decode(eos=[1.5])


def test_stop_tokens_and_lengths_are_each_paths_own(no_eos: Engine) -> None:
    limits = np.arange(16)
    paths = no_eos.prefill("the").fork(16, seed=0).decode(max_new_tokens=limits)
    assert [len(row) for row in written(paths)] == limits.tolist()
    assert set(paths.ended) == {"length"} and not paths.done.any()
    whole = no_eos.prefill("the").fork(16, seed=0).decode(max_new_tokens=16)
    assert all(a == b[: len(a)] for a, b in zip(written(paths), written(whole), strict=True))
    # going on is the same as never having stopped
    assert written(paths.decode(max_new_tokens=16 - limits)) == written(whole)
    stop = written(whole)[0][3]
    paths = no_eos.prefill("the").fork(16, seed=0).decode(until=[stop], max_new_tokens=16)
    for row, full in zip(written(paths), written(whole), strict=True):
        assert row == (full[: full.index(stop) + 1] if stop in full else full)


def test_a_path_at_its_stop_leaves_the_batch_at_once(
    no_eos: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    run = no_eos.run

    def counted(leaves: Any, *others: Any) -> Any:
        rows.append(leaves.size)
        return run(leaves, *others)

    monkeypatch.setattr(no_eos, "run", counted)
    limits = np.array([1, 2, 2, 4, 7, 7, 7, 7])
    no_eos.prefill("the").fork(8, seed=0).decode(max_new_tokens=limits)
    # the prompt, whose pass gives the first token; then those that want another
    assert rows == [1] + [int((limits > step).sum()) for step in range(1, 7)]


def test_parameters_for_each_path(no_eos: Engine) -> None:
    settings: dict[str, Any] = {
        "temperature": [0.0, 1.0, 3.0, 2.0, 2.0, 2.0],
        "top_k": [0, 0, 2, 0, 0, 0],
        "top_p": [1.0, 1.0, 1.0, 0.3, 1.0, 1.0],
        "min_p": [0.0, 0.0, 0.0, 0.0, 0.5, 0.0],
    }
    mask = torch.full((6, 10), -1, dtype=torch.int32)
    mask[5, :7] = 0  # tokens from 224 on
    mixed = no_eos.prefill("the").fork(6).decode(max_new_tokens=9, mask=mask, **settings)
    plain = no_eos.prefill("the").fork(6).decode(max_new_tokens=9)
    for i in range(6):
        own = {name: values[i] for name, values in settings.items()}
        alone = no_eos.prefill("the").fork(1, start=i)
        alone.decode(max_new_tokens=9, mask=mask[i], **own)
        assert written(alone)[0] == written(mixed)[i]
        assert (written(plain)[i] == written(mixed)[i]) == (i == 1)
    assert min(written(mixed)[5]) >= 224


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


def test_statistics_of_every_token(no_eos: Engine) -> None:
    paths = no_eos.prefill("the").fork(5, seed=0)
    paths.decode(max_new_tokens=6, confidence=4).append("and").decode(max_new_tokens=2)
    model = tiny_models.plain_model(no_eos.model.config.name_or_path)
    forced = len(no_eos.encode("and", special=False))
    for i, row in enumerate(written(paths)):
        ids = torch.tensor([[*paths.prompts[0].tolist(), *row]])
        with torch.inference_mode():
            logp = model(ids).logits[0].double().log_softmax(-1)[-len(row) - 1 : -1]
        expected = logp.gather(1, torch.tensor(row)[:, None])[:, 0]
        drawn = torch.tensor([True] * 6 + [False] * forced + [True] * 2)
        assert torch.equal(paths.logprobs[i].isnan(), ~drawn)
        torch.testing.assert_close(
            paths.logprobs[i][drawn].double(), expected[drawn], atol=1e-4, rtol=0
        )
        entropy = -(logp.exp() * logp).sum(-1)
        torch.testing.assert_close(
            paths.entropy[i][drawn].double(), entropy[drawn], atol=1e-4, rtol=0
        )
        top = -logp.topk(4).values.mean(-1)
        torch.testing.assert_close(paths.confidence[i][:6].double(), top[:6], atol=1e-4, rtol=0)
        assert paths.confidence[i][6:].isnan().all()


def test_processed_logprobs_are_those_of_what_was_drawn_from(no_eos: Engine) -> None:
    settings: dict[str, Any] = {"temperature": 1.5, "top_k": [0, 1, 3, 40], "min_p": 0.02}
    paths = no_eos.prefill("the").fork(4, seed=0).decode(max_new_tokens=6, **settings)
    model = tiny_models.plain_model(no_eos.model.config.name_or_path)
    for i, row in enumerate(written(paths)):
        ids = torch.tensor([[*paths.prompts[0].tolist(), *row]])
        with torch.inference_mode():
            p = (model(ids).logits[0, -len(row) - 1 : -1].double() / 1.5).softmax(-1)
        best = p.topk(settings["top_k"][i] or 320)
        kept = best.values * (best.values >= 0.02 * best.values[:, :1])
        drawn = p.gather(1, torch.tensor(row)[:, None])[:, 0]
        torch.testing.assert_close(
            paths.processed_logprobs[i].double(), (drawn / kept.sum(-1)).log(), atol=1e-4, rtol=0
        )
    before = paths.processed_logprobs
    assert not torch.equal(before, paths.logprobs) and not before[1].any()
    forks = paths.select([2, 0]).append("and").fork(2).decode(max_new_tokens=2)
    after = forks.processed_logprobs
    assert torch.equal(after[:, :6], before[[2, 2, 0, 0]])
    assert torch.equal(after.isnan(), forks.logprobs.isnan()) and after[:, 6].isnan().all()


def test_a_linear_head_scores_without_a_pass_of_its_own(no_eos: Engine, tmp_path: Path) -> None:
    torch.manual_seed(0)
    LinearHead(torch.randn(1, 64), 0.5).save(str(tmp_path / "prm.safetensors"))
    head = LinearHead.from_file(str(tmp_path / "prm.safetensors"))
    passes = []
    run = no_eos.run
    no_eos.run = lambda *a: passes.append(a[2].sum()) or run(*a)  # type: ignore[method-assign]
    try:
        paths = no_eos.prefill("the steps").fork(6, seed=0).decode(max_new_tokens=5)
        scores = paths.score(head)
        paths.decode(max_new_tokens=5)
    finally:
        del no_eos.run
    # every token but each path's last went through the model once
    assert sum(passes) == paths.prompts[0].size + 6 * 9
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


def test_stop_if_sees_every_step(no_eos: Engine) -> None:
    steps = []

    def stop(paths: Any, running: Any) -> Any:
        steps.append(running.tolist())
        return running == len(steps) - 1 if len(steps) < 3 else None

    paths = no_eos.prefill("the").fork(4).decode(max_new_tokens=5, stop_if=stop)
    assert paths.ended == ["stopped", "stopped", "length", "length"]
    assert [len(row) for row in written(paths)] == [1, 2, 5, 5]
    assert steps == [[0, 1, 2, 3], [1, 2, 3], [2, 3], [2, 3]]


def test_interrupt_leaves_what_was_decoded(no_eos: Engine) -> None:
    paths = no_eos.prefill("the").fork(4, seed=0)

    def press(paths: Any, running: Any) -> None:
        if len(written(paths)[0]) == 3:
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        paths.decode(max_new_tokens=4000, stop_if=press)
    count = len(written(paths)[0])
    assert 3 <= count < 4000
    paths.decode(max_new_tokens=2)
    whole = no_eos.prefill("the").fork(4, seed=0).decode(max_new_tokens=count + 2)
    assert written(paths) == written(whole)


def test_interrupts_of_a_prompt_and_a_score_are_clean(
    no_eos: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    one_pass = no_eos._pass

    def press(*args: Any) -> Any:
        passes.append(1)
        if len(passes) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return one_pass(*args)

    held = no_eos.kv_bytes
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(no_eos, "_pass", press)
        no_eos.prefill([3] * 3000)
    assert len(passes) == 2 and no_eos.kv_bytes == held
    paths = no_eos.prefill("the").fork(4, seed=0).decode(max_new_tokens=3)
    passes.pop()  # the next is the second
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(no_eos, "_pass", press)
        paths.score(LinearHead(torch.ones(64)))
    same = no_eos.prefill("the").fork(4, seed=0).decode(max_new_tokens=3)
    assert torch.equal(paths.hidden(), same.hidden())
    assert written(paths.decode(max_new_tokens=3)) == written(same.decode(max_new_tokens=3))


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


def test_no_loop_over_paths_a_token(no_eos: Engine) -> None:
    """The bytecode that a step of the engine runs is as long for 256 paths as for 16."""
    ours, count = str(Path(engine_package.__file__).parent), [0]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(ours):
            return None
        frame.f_trace_opcodes = True
        count[0] += event == "opcode"
        return trace

    tilde = no_eos.tokenizer.convert_tokens_to_ids("~")
    mask = torch.full((10,), -1, dtype=torch.int32)
    mask[tilde // 32] &= ~(1 << tilde % 32)
    counts = []
    for n in (16, 256):
        # all within one page; nobody may write the last letter of the stop
        paths = no_eos.prefill("the").fork(n, seed=0).decode(max_new_tokens=2)
        steps: list[int] = []

        def note(paths: Any, running: Any, steps: list[int] = steps) -> None:
            steps.append(count[0])

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            paths.decode("xy~", 5, mask=mask, confidence=2, stop_if=note)
        finally:
            sys.settrace(before)
        counts.append(min(np.diff(steps)))
    assert counts[0] > 500 and counts[1] < 1.2 * counts[0], counts


def test_a_long_run_shows_a_bar(
    no_eos: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws as on a terminal
    no_eos.prefill("the").fork(4).decode(max_new_tokens=5, progress=True)
    assert "decoding" in capsys.readouterr().err
    paths = no_eos.prefill("the").fork(64).decode(max_new_tokens=40)
    assert capsys.readouterr().err == ""  # nobody looks
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    paths.decode(max_new_tokens=2)
    assert capsys.readouterr().err == ""  # not worth a bar
    paths.decode(max_new_tokens=40)
    assert "decoding" in capsys.readouterr().err


def test_draws_belong_to_seed_prompt_and_path(no_eos: Engine) -> None:
    def draws(prompts: Any, seed: int) -> list[tuple[int, int]]:
        forks = no_eos.prefill(prompts).fork(3, seed=seed)
        again = forks.fork(2)
        parts = [p.sample_identity(np.arange(len(p))) for p in (forks, again)]
        return [
            pair for keys, ids in parts for pair in zip(keys.tolist(), ids.tolist(), strict=True)
        ]

    a, b = draws("the steps", 0), draws("the step", 0)
    assert draws(["the step", "the steps"], 0) == b[:3] + a[:3] + b[3:] + a[3:]
    everyone = a + b + draws("the steps", 1)
    assert len(set(everyone)) == len(everyone) == 27
