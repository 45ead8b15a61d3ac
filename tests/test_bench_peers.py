"""`make bench-peers`: how the parent asks its children, with a child that does what it should not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import bench_peers, table

FAKE = """
import os, signal, sys, time
from benchmarks.peers import child

class Fake:
    package = "numpy"

    def __init__(self, model, threads, dtype):
        self.does = dtype
        if self.does == "does not load":
            raise RuntimeError("no such model")
        print("a library's chatter")

    def decode(self, prompt, paths, steps, mark):
        if self.does == "skips" and paths > 1:
            raise child.Skip("needs more memory")
        if self.does == "dies" and paths > 1:
            print("a tile fault", file=sys.stderr)
            os._exit(1)
        if self.does == "is killed":
            os.kill(os.getpid(), signal.SIGFPE)
        if self.does == "hangs":
            time.sleep(60)
        for _ in range(1 + steps - (self.does == "loses a step")):
            mark()
        tokens = [[path] * (1 + steps) for path in range(paths)]
        if self.does == "too short":
            tokens[-1].pop()
        if self.does == "too few" and paths > 1:
            tokens.pop()
        if self.does == "same" and paths > 1:
            tokens = [tokens[0]] * paths
        return tokens

child.serve(Fake)
"""


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs cells of 1 and 3 paths with children that each do one thing."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def command(engine: Any, *_: Any) -> list[str]:
        path = f"import sys; sys.path.insert(0, ''); exec(open({str(script)!r}).read())"
        return [sys.executable, "-c", path, "model", "1", engine.dtype]

    def run(*does: str) -> list[dict[str, Any]]:
        engines = {name: bench_peers.Engine("fake", name) for name in does}
        monkeypatch.setattr(bench_peers, "ENGINES", engines)
        given = {"peers": [*does], "model": "125M", "torch": "", "prompts": [5], "paths": [1, 3]}
        args = argparse.Namespace(**given, steps=4, rounds=2)
        return list(bench_peers.rows(args, 1, Console(quiet=True)))

    monkeypatch.setattr(bench_peers, "BUILD", tmp_path / "peers")
    monkeypatch.setattr(bench_peers, "checkpoint", lambda name: tmp_path)
    monkeypatch.setattr(bench_peers, "command_of", command)
    return run


def test_children_are_asked_in_turn_and_the_bad_left_out_with_a_reason(fakes: Any) -> None:
    reasons = {
        "does not load": ("no such model", "no such model"),
        "too short": ("gave 1 paths of [2] tokens, not 1 of 3", "gave 1 paths of [2] tokens"),
        "too few": (None, "gave 2 paths of [3] tokens, not 3 of 3"),
        "same": (None, "of 3 paths only 1 are distinct"),
        "loses a step": ("timed 2 tokens, not 3", "timed 2 tokens, not 3"),
        "dies": (None, "a tile fault"),
        "is killed": ("ended by SIGFPE", "ended by SIGFPE"),
        "skips": (None, "needs more memory"),
    }
    one, three = fakes("good", *reasons)
    for row, at in ((one, 0), (three, 1)):
        assert list(row["engines"]) == ["good", *reasons] and row["shape"]["paths"] == (1, 3)[at]
        good = row["engines"]["good"]
        assert (
            good["steps"] == 8
            and good["step_ms"] >= 0 <= good["prefill_s"]
            and good["engine"].startswith("numpy ")
        )
        for name, expected in reasons.items():
            got = row["engines"][name]
            if expected[at] is None:
                assert "why" not in got and got["steps"] == 8, name
            else:
                assert expected[at] in got["why"] and "step_ms" not in got, name


def test_one_that_does_not_answer_is_ended(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_peers.LIMITS, "answer", 0.3)
    (row, _) = fakes("hangs")
    assert row["engines"]["hangs"]["why"] == "no answer in 0.3 s"


def test_one_that_does_not_install_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(command: list[str], stdout: Any, **_: Any) -> None:
        if "install" in command:
            print("ERROR: No matching distribution found for openvino\n", file=stdout, flush=True)
            raise bench_peers.subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(bench_peers, "BUILD", tmp_path)
    monkeypatch.setattr(bench_peers.subprocess, "run", run)
    field = bench_peers.Field(["openvino"], tmp_path, 1, "torch")
    why = "does not install: ERROR: No matching distribution found for openvino"
    assert field.lost == {"openvino": why} and not field.children


def test_the_table_names_the_best_of_equal_precision() -> None:
    speeds = {"pyttc": 30.0, "a": 10.0, "b": 20.0, "c int8": 40.0}
    engines = {
        name: {"dtype": "int8" if "int8" in name else "bfloat16", "tokens_per_second": speed}
        for name, speed in speeds.items()
    }
    engines["d"] = {"dtype": "bfloat16", "why": "does not install"}
    row = {"shape": {"prompt": 5, "paths": 3}, "threads": 1, "engines": engines}
    assert table.peer_lines([row])[-1] == "| 5 | 3 | 1 | 30 | 10 | 20 | 40 | - | 1.50 |"
