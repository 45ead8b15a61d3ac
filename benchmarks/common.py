"""What every benchmark shares: inputs that no cache holds, timing, the measured roof, and rows.

A benchmark is a file benchmarks/bench_<op>.py with a generator ``cases()`` that yields dicts:

    op, shape (dict), dtype      what is measured; `impl` too, "native" unless said
    run                          a callable without arguments: one call, on other inputs each time
    check                        a callable -> bool: is the output right, against the reference?
    bytes, flops                 what one call must move and compute; `written`, the part of bytes
                                 that is written (0 unless said)
    peers                        {name: a callable without arguments}: how others would do it

``python -m benchmarks.run`` times them and appends rows to benchmarks/rows/<device>.jsonl.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import pyttc
from pyttc.commands.info import cpu_model

HERE = Path(__file__).parent
CACHE_LEVELS = Path("/sys/devices/system/cpu/cpu0/cache")


def last_level_cache() -> int:
    """Bytes of the largest cache, 32 MiB where the system does not say."""
    sizes = [p.read_text().strip() for p in CACHE_LEVELS.glob("index*/size")]
    return max((int(s[:-1]) << {"K": 10, "M": 20}[s[-1]] for s in sizes), default=32 << 20)


def rotating(make: Callable[[], Any], nbytes: int) -> Callable[[], Any]:
    """A callable giving the next of several inputs, which together no cache holds.

    They take twice the last-level cache, at most 1 GiB.

    Args:
        make: makes one set of inputs.
        nbytes: bytes of one set that a call reads and writes.
    """
    count = max(2, -(-min(2 * last_level_cache(), 1 << 30) // max(1, nbytes)))
    return itertools.cycle([make() for _ in range(min(count, 4096))]).__next__


@dataclass
class Roof:
    """What this machine can do with a number of threads: GB/s, and GFLOP/s by dtype."""

    read: float
    copy: float
    float32: float
    bfloat16: float

    def seconds(self, case: dict[str, Any]) -> float:
        """The least time a case can take: its bytes at memory speed or its FLOPs, the longer."""
        copied = 2 * case.get("written", 0)
        moving = max(0, case["bytes"] - copied) / self.read + min(copied, case["bytes"]) / self.copy
        rate = self.bfloat16 if case["dtype"] == "bfloat16" else self.float32
        return max(moving, case["flops"] / rate) / 1e9

    def raised(self, other: Roof) -> Roof:
        return Roof(
            *(max(a, b) for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )


@cache
def roof_program() -> Path | None:
    """roof.cpp, compiled for this machine, or None where there is no compiler."""
    source = HERE / "roof.cpp"
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyttc"
    what = hashlib.sha256(source.read_bytes() + cpu_model().encode()).hexdigest()[:16]
    program = folder / f"roof-{what}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        flags = ["-std=c++17", "-O3", "-march=native", "-fopenmp"]
        with tempfile.TemporaryDirectory(dir=folder) as made:
            command = [os.environ.get("CXX", "g++"), *flags, str(source), "-o", f"{made}/roof"]
            try:
                subprocess.run(command, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                return None
            os.replace(f"{made}/roof", program)
    return program


def measure_roof(threads: int) -> Roof | None:
    program = roof_program()
    if program is None:
        return None
    command = [str(program), str(threads), str(min(4 * last_level_cache(), 1 << 29))]
    return Roof(**json.loads(subprocess.check_output(command)))


_highest: dict[int, Roof] = {}  # of a number of threads


def highest_roof(threads: int) -> Roof | None:
    """Measures the roof once more, and gives the highest so far: neighbours only ever lower it."""
    found = measure_roof(threads)
    if found:
        _highest[threads] = found.raised(_highest.get(threads, found))
    return _highest.get(threads)


@contextlib.contextmanager
def roof_around(threads: int) -> Iterator[Callable[[], Roof | None]]:
    """Measures the roof before and after a block; afterwards the callable gives the highest."""
    highest_roof(threads)
    yield lambda: _highest.get(threads)
    highest_roof(threads)


@dataclass
class Timing:
    """Seconds a call: the median and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def clock() -> Callable[[], float]:
    """Thread CPU time when torch runs on one thread (neighbours disturb it less), else the wall."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def measure(calls: dict[str, Callable[[], Any]], seconds: float = 2.0) -> dict[str, Timing]:
    """Times several callables in turn, one sample of each a round: all meet the same machine.

    Args:
        calls: what to time, by name. A sample is one call, or as many as take 0.2 ms.
        seconds: time to spend in all; at least 5 rounds are made, at most 500.
    """
    now = clock()
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, int(2e-4 / max(time.perf_counter() - start, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for made in range(500):
        if made >= 5 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            start = now()
            for _ in range(repeats[name]):
                call()
            samples[name].append((now() - start) / repeats[name])
    return {name: summary(taken) for name, taken in samples.items()}


def summary(samples: list[float]) -> Timing:
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return Timing(statistics.median(samples), fifths[0], fifths[3])


def device_name() -> str:
    """The CPU and the instruction set in use, as a file name."""
    model = re.sub(r"\(R\)|\(TM\)|CPU|@.*", "", cpu_model())
    return "-".join(re.findall(r"[a-z0-9]+", f"{model} {pyttc._C.isa()}".lower()))


def commit() -> str:
    git = ["git", "-C", str(HERE.parent)]
    if not (HERE.parent / "setup.py").exists():  # installed
        return "unknown"
    try:
        head = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True).strip()
        changed = subprocess.check_output([*git, "status", "--porcelain", "-uno"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def rows(cases: Iterator[dict[str, Any]], threads: int, seconds: float) -> list[dict[str, Any]]:
    """Checks and times cases on a number of threads. Each row says whether its output was right and
    what part of the measured roof it reached."""
    torch.set_num_threads(threads)
    timed = []
    with roof_around(threads) as roof:
        for case in cases:
            checked = bool(case["check"]())
            took = measure({"pyttc": case.pop("run"), **case.pop("peers", {})}, seconds)
            del case["check"]  # with which the inputs go
            timed.append((case, checked, took))
    for _ in range(3):  # above the roof is first of all a roof that was measured too low
        if (limit := roof()) is None:
            break
        if all(limit.seconds(case) <= took["pyttc"].median for case, _, took in timed):
            break
        highest_roof(threads)
    return [row(case, checked, took, roof(), threads) for case, checked, took in timed]


def row(
    case: dict[str, Any], checked: bool, took: dict[str, Timing], roof: Roof | None, threads: int
) -> dict[str, Any]:
    ours = took.pop("pyttc")
    return {
        "op": case["op"],
        "impl": case.get("impl", "native"),
        "shape": case["shape"],
        "dtype": case["dtype"],
        "threads": threads,
        "median_us": round(ours.median * 1e6, 2),
        "p20_us": round(ours.p20 * 1e6, 2),
        "p80_us": round(ours.p80 * 1e6, 2),
        "bytes": case["bytes"],
        "flops": case["flops"],
        "roof_percent": round(100 * roof.seconds(case) / ours.median, 1) if roof else None,
        "checked": checked,
        "peers": {
            name: {
                "median_us": round(peer.median * 1e6, 2),
                "ratio": round(peer.median / ours.median, 2),
            }
            for name, peer in took.items()
        },
        "clock": "thread CPU" if threads == 1 else "wall",
        "roof": {name: round(value, 1) for name, value in vars(roof).items()} if roof else None,
        **origin(),
    }


def origin() -> dict[str, Any]:
    """What a row says of where and when it was measured."""
    return {
        "device": cpu_model(),
        "isa": pyttc._C.isa(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {
            "pyttc": pyttc.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
