"""Journals: a run that goes on from one is the run that was never interrupted, and no other goes on."""

import base64
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import pyttc
from pyttc import search
from pyttc.engine import Paths, paths
from pyttc.search import events, journal
from pyttc.search.journal import Journal, JournalError, line
from pyttc.search.names import NAMES
from pyttc.tasks import countdown_search as countdown
from pyttc.tasks.countdown_text import prompt

from .countdown_models import PROBLEMS
from .resumed import bits, solve

PROMPTS = [prompt(problem) for problem in PROBLEMS]


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Of a journal to which each event is written at once; no test takes the disk away."""
    monkeypatch.setattr(events, "SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return tmp_path / "run.journal"


def cuts(data):
    """Prefixes of a journal: at the ends of records and within them."""
    ends = np.cumsum([len(text) for text in data.splitlines(True)]).tolist()
    draw = np.random.default_rng(0)
    some = ends if len(ends) < 7 else [ends[0], *draw.choice(ends[1:-1], 3, False), ends[-2]]
    return [1, *some, some[1] - 1, *draw.integers(ends[0], len(data), 2)]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_to_the_bit(engine, head, path, name):
    expected = solve(engine, PROMPTS, name, head)
    assert solve(engine, PROMPTS, name, head, journal=path) == expected
    data = path.read_bytes()
    for size in cuts(data):
        path.write_bytes(data[:size])
        assert solve(engine, PROMPTS, name, head, journal=path) == expected, size
        assert path.read_bytes().splitlines()[0] == data.splitlines()[0]


def test_draws_on_record_keep_their_processed_logprobs(engine, path):
    def likely(paths):
        return paths.processed_logprobs.nansum(1)

    def run():
        strategy = search.BestOfN(4, likely)
        return bits(search.solve(engine, PROMPTS, strategy, **options))

    options = {**countdown.options(), "top_p": 0.8, "journal": path}
    expected, data = run(), path.read_bytes()
    scored = data.index(b'[["score"')  # the draws are before it
    path.write_bytes(data[:scored])
    assert run() == expected


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_from_every_byte(engine, head, path, name):
    expected = solve(engine, PROMPTS, name, head, journal=path)
    data = path.read_bytes()
    ends = np.cumsum([len(text) for text in data.splitlines(True)]).tolist()
    for size in sorted({*ends, *range(0, len(data), 97)}):
        path.write_bytes(data[:size])
        assert solve(engine, PROMPTS, name, head, journal=path) == expected, size


def test_a_done_run_asks_nobody(engine, head, path, monkeypatch):
    expected = solve(engine, PROMPTS, "beam", head, journal=path)
    data = path.read_bytes()
    monkeypatch.setattr(type(head), "__call__", None)
    monkeypatch.setattr(engine.model, "logits", None)
    assert solve(engine, PROMPTS, "beam", head, journal=path) == expected
    assert path.read_bytes() == data


@pytest.mark.parametrize("limit", [{"tokens": 150}, {"flops": 3e7}])
def test_a_budget_is_kept_across_runs(engine, head, path, limit):
    for name in ("beam", "revision"):
        path.unlink(missing_ok=True)
        budget = pyttc.Budget(**limit)
        expected = solve(engine, PROMPTS, name, head, budget=budget, stop_when_verified=False)
        options = {"budget": budget, "stop_when_verified": False, "journal": path}
        assert solve(engine, PROMPTS, name, head, **options) == expected
        data = path.read_bytes()
        for size in cuts(data):
            path.write_bytes(data[:size])
            assert solve(engine, PROMPTS, name, head, **options) == expected


@pytest.mark.usefixtures("ticking")
def test_seconds_are_the_sum(engine, head, path):
    """The clock goes on where the journal ends; a run that time ended is told as it was."""
    options = {"stop_when_verified": False, "budget": pyttc.Budget(seconds=0.05), "journal": path}
    first = solve(engine, PROMPTS * 8, "beam", head, **options)
    assert first[-1][0]["stopped"] == "seconds"
    assert solve(engine, PROMPTS * 8, "beam", head, **options) == first
    *lines, last = path.read_bytes().splitlines(True)
    record = json.loads(last)
    record.pop("crc")
    path.write_bytes(b"".join(lines) + line({**record, "seconds": 1e6}))
    found = search.solve(
        engine,
        PROMPTS * 8,
        search.Beam(head, 8, 4),
        **{**countdown.options(), "seed": 3, **options},
    )
    assert found[0].seconds >= 1e6 and bits(found) == first


def test_tools_and_verifiers_are_asked_once(engine, path):
    """What they said is on record: one that answers differently each time does not matter."""
    asked = []

    def moody(line, text):
        asked.append(text)
        return len(asked) % 3 == 0

    options = {**countdown.options(), "verify": moody, "journal": path}
    first = bits(search.solve(engine, PROMPTS, search.SampleN(16), **options))
    told = len(asked)
    assert told == len({*asked}) or told > 0
    assert bits(search.solve(engine, PROMPTS, search.SampleN(16), **options)) == first
    assert len(asked) == told


@pytest.mark.parametrize("plant", ["another path", "another seed", "stale keys", "a score lost"])
def test_a_wrong_resumption_is_seen(engine, head, path, monkeypatch, plant):
    expected = solve(engine, PROMPTS, "beam", head, journal=path)
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))
    if plant == "stale keys":
        monkeypatch.setattr(paths, "refill", lambda paths: setattr(paths, "hollow", False))
    elif plant == "a score lost":
        keep = [text for text in lines[: len(lines) // 2] if b'[["score"' not in text]
        path.write_bytes(b"".join(keep))
    else:
        real = Paths.sample_identity
        other = (0, 1) if plant == "another path" else (1, 0)

        def shifted(self, which):
            keys, ids = real(self, which)
            return keys + other[0], ids + other[1]

        monkeypatch.setattr(Paths, "sample_identity", shifted)
    try:
        found = solve(engine, PROMPTS, "beam", head, journal=path)
    except JournalError as error:
        assert plant == "a score lost" and "where this run needs a score" in str(error)
    else:
        assert found != expected


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 4}, "seed is 3 there and 4 here"),
        ({"temperature": 0.5}, "sampling.temperature is null there and 0.5 here"),
        ({"max_new_tokens": 9}, "max_new_tokens is 160 there and 9 here"),
        ({"budget": pyttc.Budget(tokens=9)}, "budget.tokens is null there and 9 here"),
        ({"verify": lambda line, text: False}, "verify is"),
        ({"tool": None}, "tool is"),
    ],
)
def test_another_run_is_refused(engine, head, path, change, said):
    solve(engine, PROMPTS, "beam", head, journal=path)
    data = path.read_bytes()
    with pytest.raises(JournalError, match="the journal of another run") as refused:
        solve(engine, PROMPTS, "beam", head, **change, journal=path)
    assert said in str(refused.value) and str(path) in str(refused.value)
    assert path.read_bytes() == data


def test_another_model_prompt_or_strategy_is_refused(engine, head, path):
    solve(engine, PROMPTS, "beam", head, journal=path)
    with pytest.raises(JournalError, match="strategy.is is"):
        solve(engine, PROMPTS, "dvts", head, journal=path)
    with pytest.raises(JournalError, match="strategy.score.weight is"):
        solve(engine, PROMPTS, "beam", pyttc.LinearHead(head.weight + 1), journal=path)
    with pytest.raises(JournalError, match="prompts is"):
        solve(engine, PROMPTS[:1], "beam", head, journal=path)
    weight = next(iter(engine.model.model.parameters()))
    before = weight.data[0, 0].clone()
    weight.data[0, 0] += 1
    try:
        with pytest.raises(JournalError, match="model is"):
            solve(engine, PROMPTS, "beam", head, journal=path)
    finally:
        weight.data[0, 0] = before
    solve(engine, PROMPTS, "beam", head, journal=path)


def test_other_files_are_refused_and_left_alone(tmp_path):
    path, asked = tmp_path / "x", {"seed": 1}
    past = line({"format": "pyttc journal", "version": 1, "asked": asked})
    good = line({"format": "pyttc journal", "version": 2, "asked": asked})
    for data, said in (
        (b"my notes", "not a journal"),
        (b"my notes\n", "not a journal"),
        (b'{"format": "pyttc curve"}\n', "not a journal"),
        (past, "of version 1, and this pyttc reads version 2"),
        (good + b"{}\n" + line({"a": 1}), "line 2: damaged"),
        (good + line({"a": 1})[:-9] + b"\n" + line({"a": 1}), "line 2: damaged"),
        (good + line({"a": 1}).replace(b"1", b"2", 1) + line({"a": 1}), "line 2: damaged"),
    ):
        path.write_bytes(data)
        with pytest.raises(JournalError, match=said):
            Journal(path, asked)
        assert path.read_bytes() == data
    for torn in (b"", good[:1], good[:-1], good + b'{"a', good + b"\0" * 9, good + b"{}\n"):
        path.write_bytes(torn)
        with Journal(path, asked) as held:
            assert list(held.records()) == []
            held.append({"a": 1})
        assert path.read_bytes() == good + line({"a": 1})
    with pytest.raises(OSError):
        Journal(tmp_path, asked)


def repeated(text, steps):
    """A draw's array as if of so many steps."""
    return base64.b64encode(base64.b64decode(text) * steps).decode()


def test_records_that_do_not_fit_are_refused(engine, head, path):
    """A whole line with a right checksum need not be one that was written here."""
    solve(engine, PROMPTS, "beam", head, journal=path)
    lines = path.read_bytes().splitlines(True)
    draw = next(n for n, text in enumerate(lines) if b'[["draw"' in text)
    good = json.loads(lines[draw])["events"][0][1]
    score = next(n for n, text in enumerate(lines) if b'[["score"' in text)
    scores = json.loads(lines[score])["events"][0][1]
    for at, event in (
        (1, ["prefill", {}]),
        (1, ["prefill", {"ran": {}, "unshared": {}}]),
        (1, ["verify", []]),
        (draw, ["draw", 5]),
        (draw, ["draw", {}]),
        (draw, ["draw", {**good, "tokens": good["logprobs"]}]),
        (draw, ["draw", {**good, "tokens": "AAAA"}]),
        (draw, ["draw", {name: repeated(text, 2) for name, text in good.items()}]),
        (draw, ["draw", {name: repeated(text, 500) for name, text in good.items()}]),
        (draw, ["draw", {name: "" for name in good}]),
        (draw, ["draw", {**good, "more": good["logprobs"]}]),
        (draw, ["draw", {n: v for n, v in good.items() if n != "processed_logprobs"}]),
        (score, ["score", {**scores, "scores": scores["scores"][1:]}]),
        (score, ["score", {**scores, "scores": ["x"] * len(scores["scores"])}]),
        (score, ["score", None]),
    ):
        record = {"seconds": 1.0, "engine": 1.0, "events": [event]}
        path.write_bytes(b"".join([*lines[:at], line(record), *lines[at + 1 :]]))
        with pytest.raises(JournalError, match="does not fit this run"):
            solve(engine, PROMPTS, "beam", head, journal=path)
    for record in ({}, {"seconds": "1", "engine": 1, "events": []}, {"events": [5]}):
        path.write_bytes(b"".join([lines[0], line(record)]))
        with pytest.raises(JournalError, match="does not fit this run"):
            solve(engine, PROMPTS, "beam", head, journal=path)
    before = engine.free_pages
    path.write_bytes(b"".join(lines))
    solve(engine, PROMPTS, "beam", head, journal=path)
    assert engine.free_pages == before


def test_two_runs_at_once_are_one_too_many(tmp_path):
    script = "import sys; from pyttc.search.journal import Journal; Journal(sys.argv[1], {})"
    with Journal(tmp_path / "x", {}) as held:
        held.append({"a": 1})
        with pytest.raises(JournalError, match="in use by another run"):
            Journal(tmp_path / "x", {})
        other = [sys.executable, "-c", script, str(tmp_path / "x")]
        done = subprocess.run(other, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1 and "in use by another run" in done.stderr
        held.append({"a": 2})
    with Journal(tmp_path / "x", {}) as held:
        assert list(held.records()) == [{"a": 1}, {"a": 2}]


def test_a_curve_goes_on_to_the_bit(engine, head, path):
    def points(**options):
        strategies = {
            "best-of-n": lambda n: search.BestOfN(n, head),
            "beam": lambda n: search.Beam(head, n, min(4, n)),
        }
        found = pyttc.curve(
            engine,
            PROMPTS,
            strategies,
            sizes=(1, 8),
            rows=8,
            seed=3,
            **countdown.options(),
            **options,
        )
        return [{**vars(point), "seconds": 0} for point in found]

    expected = points()
    assert points(journal=path) == expected
    data = path.read_bytes()
    assert data.count(b'{"part"') == 2 + 2 + 1  # one problem at a time, and both where n is 1
    for size in cuts(data):
        path.write_bytes(data[:size])
        assert points(journal=path) == expected
    data = path.read_bytes()
    with pytest.raises(JournalError, match="temperature is null there and 2.0 here"):
        points(journal=path, temperature=2.0)
    assert path.read_bytes() == data


class Full:
    """A disk that is full from the k-th write, or refuses the k-th fsync."""

    def __init__(self, monkeypatch, k, what):
        self.left = k
        monkeypatch.setattr(journal.os, "fsync", self.fsync if what == "fsync" else lambda fd: None)
        if what == "write":
            monkeypatch.setattr(journal, "open", self.open, raising=False)

    def spend(self):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fsync(self, fd):
        self.spend()

    def open(self, *args, **options):
        file, full = open(*args, **options), self

        class Wrapped:
            def __getattr__(self, name):
                return getattr(file, name)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def write(self, data):
                if full.left == 0:  # part of it still finds room
                    file.write(data[: len(data) // 2])
                    file.flush()
                full.spend()
                return file.write(data)

        return Wrapped()


@pytest.mark.parametrize("what", ["write", "fsync"])
def test_a_full_disk_ends_a_run_that_can_go_on(engine, head, path, monkeypatch, what):
    expected = solve(engine, PROMPTS, "beam", head)
    free = engine.free_pages
    for k in (0, 1, 2, 5, 9):
        path.unlink(missing_ok=True)
        with monkeypatch.context() as patched:
            Full(patched, k, what)
            with pytest.raises(OSError, match="No space left on device"):
                solve(engine, PROMPTS, "beam", head, journal=path)
        assert engine.free_pages == free
        assert path.read_bytes().count(b"\n") <= k + 1
        assert solve(engine, PROMPTS, "beam", head, journal=path) == expected


@pytest.mark.parametrize("what", ["write", "fsync"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, what):
    path = tmp_path / "run.json"
    tree = search.SearchTree(["a"], [search.tree.Node(-1, 0, 0, "x", [1, 2], -1.0)], [0], {})
    tree.save(path)
    old = path.read_bytes()
    with monkeypatch.context() as patched:
        Full(patched, 0, what)
        with pytest.raises(OSError, match="No space left on device") as full:
            search.SearchTree(["b"]).save(path)
    assert str(path) in str(full.value)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["run.json"]
    assert search.SearchTree.load(path) == tree


def test_a_file_that_may_not_grow_is_named(tmp_path):
    """A real limit of the kernel, in a process of its own."""
    script = """
import resource, signal, sys
from pathlib import Path
from pyttc.search.journal import Journal, write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path(sys.argv[1])
held = Journal(path, {})
try:
    while True: held.append({"text": "x" * 1000})
except OSError as error: print(error)
held.close()
print(len(list(Journal(path, {}).records())))
try: write_whole(path.with_name("whole"), "x" * 5000)
except OSError as error: print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    first, count, second = done.stdout.splitlines()
    assert "File too large; what was there before is kept" in first and str(tmp_path / "x") in first
    assert count == "3" and "File too large" in second and os.listdir(tmp_path) == ["x"]
