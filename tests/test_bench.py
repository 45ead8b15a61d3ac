"""`pyttc bench`, and what benchmarks are made of."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks import common, plots, table
from pyttc import cli
from pyttc.dispatch import ops

SMALL = {
    "copy_pages": ["--layers", "1", "--forks", "2"],
    "lm_head_topk": ["--rows", "2", "--columns", "300", "--hidden", "16"],
    "merge_states": ["--n", "3", "--dtype", "float32"],
    "prefix_tree_attention": ["--widths", "1,2", "--lengths", "30,4"],
    "sample": ["--rows", "2", "--columns", "300", "--top-k", "5"],
    "select_beams": ["--beams", "4", "--k", "20", "--width", "4"],
    "shared_prefix_attention": ["--n", "2", "--prefix", "50", "--suffix", "3"],
    "store_kv": ["--step", "prefill", "--n", "32"],
    "topk_score": ["--rows", "2", "--columns", "300", "--dtype", "bfloat16"],
}


@pytest.fixture(autouse=True)
def threads_as_before() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("op", sorted(ops))
def test_every_op_is_timed_at_a_shape_of_ones_own(
    op: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyttc.benchmarks.common.last_level_cache", lambda: 1 << 16)
    given = ["--op", op, *SMALL[op], "--threads", "1", "--seconds", "0", "--json"]
    assert cli.main(["bench", *given]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["op"] == op and row["checked"] and row["median_us"] > 0 and row["peers"]
    for name, value in zip(SMALL[op][::2], SMALL[op][1::2], strict=True):
        said = json.dumps([row["shape"], row["dtype"]])
        assert all(part in said for part in value.split(",")), name


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--op", "flash"], "invalid choice: 'flash'"),
        (["--op", "sample", "--prefix", "4"], "--prefix: sample has --rows, --columns"),
        (["--op", "sample", "--rows", "x"], "--rows: got 'x', expected a whole number"),
        (["--op", "topk_score", "--rows", "0"], "--rows: got '0', expected a whole number >= 1"),
        (["--op", "sample", "--dtype", "int4"], "got 'int4', expected one of float32"),
        (["--op", "store_kv", "--step", "x"], "step: got 'x', expected decode or prefill"),
        (["--op", "topk_score", "--columns", "3"], "topk_score cannot run at that shape"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *arguments])
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_without_a_compiler_there_is_no_roof(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    common.roof_program.cache_clear()
    try:
        assert common.measure_roof(1) is None and not list((tmp_path / "pyttc").iterdir())
    finally:
        common.roof_program.cache_clear()
    case = {"op": "x", "shape": {}, "dtype": "float32", "bytes": 1, "flops": 1}
    row = common.row(case, True, {"pyttc": common.Timing(1e-3, 1e-3, 1e-3)}, None, 1)
    assert row["roof_percent"] is None and "| x |" in table.lines([row])[2]


def test_a_wrong_output_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyttc.benchmarks.common.last_level_cache", lambda: 1 << 16)
    monkeypatch.setattr("pyttc.benchmarks.bench_topk_score.torch.equal", lambda a, b: False)
    given = ["--op", "topk_score", *SMALL["topk_score"], "--threads", "1", "--seconds", "0"]
    assert cli.main(["bench", *given]) == 1
    assert "differs from the reference" in capsys.readouterr().out


def test_plots_are_drawn_from_committed_rows(tmp_path: Any) -> None:
    drawn = plots.draw(tmp_path)
    assert {path.name for path in drawn} == {path.name for path in plots.PLOTS}
    assert all(path.stat().st_size > 5000 and path.exists() for path in drawn)


@pytest.mark.parametrize("found, percent_is_possible", [([1, 1, 1e9], True), ([1] * 5, False)])
def test_a_row_above_the_roof_has_it_measured_again(
    found: list[float], percent_is_possible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(found)
    monkeypatch.setattr(common, "_highest", {})
    monkeypatch.setattr(common, "measure_roof", lambda _: common.Roof(*[left.pop(0)] * 4))
    case: dict[str, Any] = {"op": "none", "shape": {}, "dtype": "float32", "bytes": 10**9}
    calls = {"run": lambda: None, "check": lambda: True}
    (row,) = common.rows(iter([{**case, **calls, "flops": 0}]), 1, 0)
    assert not left and (row["roof_percent"] <= 100) == percent_is_possible
