"""An hour of random prefill, fork, decode, append, select and free on a small model: memory stays flat, no
page is lost, a step takes as long at the end as at the beginning.

    python -m tests.trust.soak --minutes 60 --load 0.3
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from pyttc.engine import Engine, OutOfPages, Paths
from tests import tiny_models
from tests.pages import check_engine
from tests.trust.evidence import ROOT, write_evidence

MOST_PATHS, MOST_TOKENS = 300, 400  # kept at one time, and of one path
PROBES, PROBE_STEPS = 20, 16  # a minute, and steps each
LEAST_ROUNDS = 5  # of 20 calls a minute, however slow the machine
SLOPE, DRIFT = 2**20, 0.05  # bytes an hour, and of the time of a step


def small_engine(memory: str = "16MiB") -> Engine:
    """A model without an end of text, so that paths are as long as they are asked to be."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine.from_pretrained(tiny_models.make("llama", Path(folder)), memory=memory)
    engine.eos = []
    return engine


class Traffic:
    """Random calls on one engine, and the paths they leave."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.rng = engine, np.random.default_rng(seed)
        self.alive: list[Paths] = []
        self.done: Counter[str] = Counter()
        self.prefixes = [self.tokens(n) for n in (5, 16, 40, 64, 90)]

    def tokens(self, count: int) -> list[int]:
        return self.rng.integers(2, 320, count).tolist()

    def below(self, n: int) -> int:
        return int(self.rng.integers(n))

    def step(self) -> None:
        name = self.rng.choice(["prefill", "fork", "decode", "decode", "append", "select", "free"])
        try:
            paths = self.alive[self.below(len(self.alive))] if self.alive else None
            if paths is None or not len(paths):
                name = "prefill"
            getattr(self, name)(paths)
        except OutOfPages:
            name = "refused"
            self.alive = self.alive[::2]
        del paths
        self.done[str(name)] += 1
        kept = [p for p in self.alive if len(p) and int(p.lengths.max()) < MOST_TOKENS]
        while sum(map(len, kept)) > MOST_PATHS:
            kept.pop(self.below(len(kept)))
        self.alive = kept

    def prefill(self, _: Paths | None) -> None:
        prompts = [
            self.prefixes[self.below(5)] + self.tokens(1 + self.below(30))
            for _ in range(1 + self.below(4))
        ]
        salt = (None, "", "a", "b")[self.below(4)]
        self.alive.append(self.engine.prefill(prompts, seed=self.below(1000), salt=salt))
        self.done["prompts"] += len(prompts)

    def fork(self, paths: Paths) -> None:
        self.alive.append(paths.fork(self.rng.integers(0, 5, len(paths))))
        self.done["paths forked"] += len(self.alive[-1])

    def decode(self, paths: Paths) -> None:
        before = int(paths.lengths.sum())
        top_p, until = 0.5 + self.rng.random() / 2, (None, ";", [7, 9])[self.below(3)]
        paths.decode(until, 1 + self.below(12), temperature=self.rng.random() * 2, top_p=top_p)
        self.done["tokens decoded"] += int(paths.lengths.sum()) - before

    def append(self, paths: Paths) -> None:
        paths.append([self.tokens(self.below(20)) for _ in range(len(paths))])

    def select(self, paths: Paths) -> None:
        paths.select(self.rng.integers(0, len(paths), self.below(len(paths) + 2)))

    def free(self, paths: Paths) -> None:
        if self.below(2):
            paths.free()
        self.alive = [p for p in self.alive if p is not paths]

    def check(self) -> None:
        check_engine(self.engine, *self.alive)

    def end(self) -> None:
        """Lets go of all paths; every page must be back."""
        self.alive.clear()
        gc.collect()
        self.check()
        assert self.engine.free_pages == self.engine.pool.pages and self.engine.cache.nodes == 1


class Probe:
    """A run that is the same every time: its tokens must be, and so should its time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: torch.Tensor | None = None
        self.weight = torch.randn(64, 64)

    def time(self) -> float:
        """Of a step of 16 paths, as a multiple of the time of `reference`: both in CPU time of this thread,
        in turns, so that what else the machine does shows in neither."""
        return median(timed(self.run) / timed(self.reference) for _ in range(PROBES)) / PROBE_STEPS

    def run(self) -> None:
        paths = self.engine.prefill([7] * 100, salt=None).fork(16, seed=1)
        paths.decode(max_new_tokens=PROBE_STEPS)
        if self.tokens is None:
            self.tokens = paths.tokens
        assert torch.equal(paths.tokens, self.tokens), "other tokens than at the beginning"

    def reference(self) -> None:
        """Small torch and numpy calls from Python, as a step is made of, without this package."""
        x, rows = torch.ones(16, 64), np.arange(200)
        for _ in range(300):
            x = torch.nn.functional.linear(x, self.weight).softmax(-1)
            rows = np.unique(np.concatenate([rows, rows + 1]))[:200]


def timed(run: Callable[[], None]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


@dataclass
class Samples:
    """What was measured, once a minute."""

    at: list[float] = field(default_factory=list)  # hours
    memory: list[int] = field(default_factory=list)  # resident, bytes
    step: list[float] = field(default_factory=list)  # as Probe.time gives it

    def settled(self, values: list[Any]) -> list[Any]:
        """Without the first sixth, when pools and arrays still find their size."""
        return values[len(values) // 6 :]

    def memory_slope(self) -> float:
        """Bytes an hour."""
        return slope(self.settled(self.at), self.settled(self.memory))

    def drift(self) -> float:
        """By how much a step became slower from beginning to end, as a share of its time."""
        at, step = self.settled(self.at), self.settled(self.step)
        return slope(at, step) * (at[-1] - at[0]) / median(step)


def slope(x: list[float], y: list[Any]) -> float:
    """Theil and Sen: the median of the slopes between any two points."""
    pairs = combinations(zip(x, y, strict=True), 2)
    return median([(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs] or [0.0])


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(
    traffic: Traffic,
    minutes: int,
    load: float = 1.0,
    say: Callable[[str], None] = print,
    minute: float = 60.0,
) -> Samples:
    """Runs for `minutes` of `minute` seconds, on `load` of one core.

    Raises:
        AssertionError: a page is lost or held twice, or the probe's tokens change.
    """
    probe, samples = Probe(traffic.engine), Samples()
    began = time.monotonic()
    for number in range(1, minutes + 1):
        rounds = 0
        while rounds < LEAST_ROUNDS or time.monotonic() - began < number * minute:
            start = time.thread_time()
            for _ in range(20):
                traffic.step()
            traffic.check()
            time.sleep((time.thread_time() - start) * (1 / load - 1))
            rounds += 1
        traffic.end()
        samples.step.append(probe.time())
        samples.memory.append(resident())
        samples.at.append((time.monotonic() - began) / 3600)
        mib, step = samples.memory[-1] / 2**20, samples.step[-1]
        say(f"{number:4} min  {mib:8.2f} MiB  step {step:.4f}  {dict(traffic.done)}")
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--load", type=float, default=1.0, help="share of a core (1)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, traffic = time.time(), Traffic(small_engine(), seed=0)
    log = ROOT / "build/soak.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as file:

        def say(line: str) -> None:
            for to in (sys.stdout, file):
                print(line, file=to, flush=True)

        try:
            samples = soak(traffic, args.minutes, args.load, say)
        except KeyboardInterrupt:
            say("stopped")
            return 130
        growth, drift = samples.memory_slope(), samples.drift()
        say(f"memory {growth / 2**20:+.2f} MiB an hour, step time {100 * drift:+.1f} %")
    write_evidence(
        "soak",
        "random prefill, fork, decode, append, select and free; memory slope by Theil-Sen after a sixth "
        "of the time; drift likewise, of the CPU time of a fixed step over that of plain torch and numpy "
        "calls; pages checked, and free ones filled with NaN, every 20 calls",
        began,
        minutes=args.minutes,
        load_of_one_core=args.load,
        calls=dict(traffic.done),
        memory_mib_per_hour=round(growth / 2**20, 3),
        step_time_drift_percent=round(100 * drift, 2),
        pages_lost=0,
    )
    return 0 if growth < SLOPE and abs(drift) < DRIFT else 1


if __name__ == "__main__":
    raise SystemExit(main())
