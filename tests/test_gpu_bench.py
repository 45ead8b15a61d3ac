"""The GPU benchmark, run on the CPU: what it measures beside the kernels computes the same, and every case
makes its rows."""

from __future__ import annotations

import contextlib
import json
import sys
import types
import weakref
from typing import Any

import pytest
import torch

import pyttc
from benchmarks import common
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import cases, peers
from benchmarks.gpu.trees import PAGE_SIZE, SUITES, Forest, Suite, Tree

TREES = [
    Tree((1, 6), (48, 21)),
    Tree((1, 2, 6), (16, 32, 7)),
    Tree((2, 4), (16, 16)),
    Tree((3,), (40,)),
]


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "compiled", lambda function: function)


class Paged:
    """FlashInfer's wrappers, as its documentation describes them: attention of rows[i] to rows[i + 1] over
    the pages ids[pages[i] : pages[i + 1]], of which the last holds last[i] tokens."""

    def __init__(self, *args: Any) -> None:
        self.levels: list[tuple[Any, ...]] = []

    def add(self, rows: Any, pages: Any, ids: Any, last: Any, **given: Any) -> None:
        for indices in (rows, pages, ids, last):
            assert indices.dtype is torch.int32
        assert len(rows) == len(pages) == len(last) + 1 and pages[-1] == len(ids)
        self.levels.append((rows.tolist(), pages.tolist(), ids.tolist(), last.tolist()))
        self.scale = given["head_dim"] ** -0.5
        assert given["page_size"] == PAGE_SIZE

    def run(self, q: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        merged = None
        for rows, pages, ids, last in self.levels:
            out, lse = torch.zeros_like(q), torch.zeros(q.shape[:2])
            for i, tokens in enumerate(last):
                at = slice(rows[i], rows[i + 1])
                own = ids[pages[i] : pages[i + 1]]
                length = (len(own) - 1) * PAGE_SIZE + tokens
                k, v = (
                    t[own]
                    .flatten(0, 1)[:length]
                    .float()
                    .repeat_interleave(q.shape[1] // t.shape[2], 1)
                    for t in kv
                )
                scores = torch.einsum("nhd,thd->nht", q[at].float(), k) * self.scale
                out[at] = torch.einsum("nht,thd->nhd", scores.softmax(-1), v).to(q.dtype)
                lse[at] = scores.logsumexp(-1)
            merged = (out, lse) if merged is None else peers.merge(*merged, out, lse)
        assert merged is not None
        return merged[0]


class Decode(Paged):
    def plan(self, pages: Any, ids: Any, last: Any, **given: Any) -> None:
        self.add(torch.arange(len(pages)).int(), pages, ids, last, **given)


class Cascade(Paged):
    def plan(self, rows: Any, pages: Any, ids: Any, last: Any, **given: Any) -> None:
        for level in zip(rows, pages, ids, last, strict=True):
            self.add(*level, **given)


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = types.SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=Decode)
    cascade = types.SimpleNamespace(MultiLevelCascadeAttentionWrapper=Cascade)
    for name, module in (("decode", decode), ("cascade", cascade)):
        monkeypatch.setitem(sys.modules, f"flashinfer.{name}", module)


@pytest.mark.parametrize("tree", TREES)
def test_peers_of_attention_compute_the_same(tree: Tree, flashinfer: None) -> None:
    case = cases.attention_case(tree, (4, 2), "cpu", d=16)
    args = case["make"]()
    right = case["run"](*args, impl="native")[0]
    ran = set()
    every = {**case["peers"], "FlexAttention": peers.flex(case["forest"])}
    for name, peer in every.items():
        try:
            got = peer(*args)()
        except NotImplementedError:
            continue
        assert torch.allclose(got.float(), right.float(), atol=2e-2), name
        ran.add(name)
    two_levels = tree.widths[0] == 1 and len(tree.widths) == 2
    assert len(every) - len(ran) == (0 if two_levels else 1)


def test_bytes_of_a_tree() -> None:
    case = cases.attention_case(Tree((1, 64), (8192, 256)), (32, 8), "cpu")
    assert case["bytes"] == 4 * (8192 + 64 * 256) * 8 * 128 + 64 * 32 * 516
    assert case["flops"] == 4 * 64 * 32 * 8448 * 128


@pytest.mark.parametrize("name, trees, shapes", [("FastTree", 15, 3), ("PAT", 20, 4)])
def test_published_trees_are_even(name: str, trees: int, shapes: int) -> None:
    suite = SUITES[name]
    assert (len(suite.trees), len(suite.heads)) == (trees, shapes)
    for tree in suite.trees:
        forest = Forest(tree)
        for level in range(len(tree.widths)):
            below = forest.chains[:, level].unique(return_counts=True)[1]
            assert len(below) == tree.widths[level] and below.unique().numel() == 1


def test_draws_of_others_follow_the_filters() -> None:
    x = torch.randn(500, 40).bfloat16()
    tokens = peers.draw(x, torch.arange(500), 3, 5, 0.6)[0]
    best = x.float().topk(5)
    p = best.values.softmax(-1)
    kept = best.indices.masked_fill(p.cumsum(-1) - p >= 0.6, -1)
    assert (kept == tokens).any(-1).all()


@pytest.mark.parametrize(
    "name", ["FastTree", *sorted(set(cases.CASES) - {"prefix_tree_attention"})]
)
def test_every_case_makes_its_rows(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def called(calls: list[Any]) -> common.Timing:
        for call in calls:
            call()
        return common.Timing(1.0, 1.0, 1.0)

    made = {**cases.CASES, **cases.TREES}[name]
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(cases, "VOCABULARY", 300)
    small = Suite(((4, 2),), (Tree((1, 6), (48, 21)), Tree((2, 4), (24, 5))))
    monkeypatch.setitem(SUITES, "FastTree", small)
    monkeypatch.setattr(program, "CASES", {name: lambda device: made("cpu")})
    monkeypatch.setattr(program, "TREES", {})
    monkeypatch.setattr(program, "IMPLS", ("native",))
    monkeypatch.setattr(program, "replayed", called)
    monkeypatch.setattr(program, "copies", lambda nbytes: 2)
    monkeypatch.setattr(program, "roof", lambda: {"bytes_s": 1e12, "flops_s": 1e15})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr(sys, "argv", ["gpu", name, "--out", str(tmp_path / "rows")])
    assert program.main() == 0, capsys.readouterr().err
    lines = (tmp_path / "rows/nvidia-test.jsonl").read_text().splitlines()
    assert lines
    for row in map(json.loads, lines):
        assert program.said(row).startswith(row["op"])
        assert row["op"] in pyttc.dispatch.ops and row["checked"]
        for peer, took in row["peers"].items():
            assert (took["ratio"] is None) == ("FlashInfer" in peer), (peer, took)


@pytest.mark.parametrize("make", [cases.drawing, cases.scoring, cases.beams, cases.merging])
def test_a_wrong_kernel_is_noticed(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "VOCABULARY", 300)
    case = next(iter(make("cpu")))
    args = case["make"]()
    assert program.is_right(case, "native", args)
    for at in range(len(case["run"](*args, impl="native"))):

        def run(*args: Any, impl: str, at: int = at) -> Any:
            got = case["run"](*args, impl="native")
            if impl == "native" or not got[at].numel():
                return got
            other = got[at].clone()
            other.flatten()[0] += 1 if other.dtype is not torch.bool else False
            return (
                got._replace(**{got._fields[at]: other})
                if hasattr(got, "_fields")
                else (*got[:at], other, *got[at + 1 :])
            )

        changed = case["run"](*args, impl="native")[at]
        if changed.numel() and changed.dtype is not torch.bool:
            assert not program.is_right({**case, "run": run}, "cuda", args), at


def test_every_call_of_a_graph_writes_to_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what is written stays in the cache, and a kernel that writes much is faster than can be."""
    made: list[weakref.ref[torch.Tensor]] = []

    def call() -> torch.Tensor:
        output = torch.zeros(1)
        made.append(weakref.ref(output))
        return output

    class Graph:
        def replay(self) -> None:
            assert all(output() is not None for output in made[3:])

    class Event:
        def __init__(self, enable_timing: bool) -> None: ...
        def record(self) -> None: ...
        def synchronize(self) -> None: ...
        def elapsed_time(self, other: Event) -> float:
            return 3.0

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert program.replayed([call] * 3).median == pytest.approx(1e-3)
    assert len(made) == 6


def test_attention_that_drops_tokens_is_noticed() -> None:
    case = cases.attention_case(Tree((1, 4), (2048, 16)), (8, 2), "cpu", d=64)
    args = case["make"]()

    def run(q: Any, k: Any, v: Any, tree: Any, impl: str) -> Any:
        if impl != "native":
            shorter = tree.lengths - 16 * (torch.arange(5) == 0)
            parts = tree.parents, tree.page_offsets, tree.page_ids, shorter, tree.leaves
            tree = pyttc.PrefixTree.from_tensors(*parts, tree.page_size)
        return case["run"](q, k, v, tree, impl="native")

    assert program.is_right(case, "native", args)
    assert not program.is_right({**case, "run": run}, "cuda", args)
