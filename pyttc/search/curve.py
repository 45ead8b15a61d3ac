"""curve: accuracy against compute, for several strategies and numbers of paths."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ..engine import Engine, Paths
from .budget import Budget
from .run import Run, Scorer, Strategy, Verifier
from .solve import Result, stream
from .statistics import bootstrap_interval, pass_at_k
from .tree import SearchTree

ROWS = 4096  # paths that run together
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Point:
    """One strategy with one number of paths, measured on all problems.

    Attributes:
        solved: share of problems with a verified path, as (mean, low, high): what a user with a verifier
            gets. For independent paths the unbiased pass@n from all paths of the run.
        chosen: share of problems whose answer, the path the strategy itself prefers, is right: what a
            user without a verifier gets.
        tokens, flops, seconds, dollars: spent, a problem; dollars None without a price.
    """

    strategy: str
    n: int
    problems: int
    solved: Interval
    chosen: Interval
    tokens: float
    flops: float
    seconds: float
    dollars: float | None


def curve(
    engine: Engine,
    problems: Sequence[str],
    strategies: Mapping[str, Callable[[int], Strategy]],
    *,
    verify: Verifier,
    sizes: Sequence[int] = (1, 4, 16, 64),
    seconds: float | None = None,
    dollars_per_hour: float | None = None,
    rows: int = ROWS,
    **options: Any,
) -> Iterator[Point]:
    """Measures strategies at several numbers of paths; yields each point as soon as it is there.

    Independent paths (a strategy with `pick`) are drawn once, at the largest size, in waves that end at
    each size: a run with 64 paths contains those with 1, 4 and 16. Its accuracy at n is the mean over all
    paths of the run, its cost that of the waves up to n. Other strategies run once a size. No path is
    stopped because another was verified.

    Args:
        problems: prompts, which share a batch as far as `rows` paths go.
        strategies: a name and what makes the strategy with n paths a prompt.
        verify: (prompt, text) -> bool.
        sizes: numbers of paths, rising.
        seconds: for everything; a point that is not finished by then is not there.
        dollars_per_hour: the machine's price.
        **options: of `solve`: tool, delimiter, max_new_tokens, seed, temperature, ...
    """
    if not problems:
        raise ValueError("problems: got none, expected at least one prompt")
    if not sizes or list(sizes) != sorted({max(1, n) for n in sizes}):
        raise ValueError(f"sizes: got {list(sizes)}, expected rising numbers >= 1")
    deadline = time.perf_counter() + (np.inf if seconds is None else seconds)
    options = {**options, "verify": verify, "stop_when_verified": False}
    for name, make in strategies.items():
        independent = hasattr(make(sizes[-1]), "pick")
        for group in [list(sizes)] if independent else [[n] for n in sizes]:
            sums = [Sums() for _ in group]
            width = max(1, rows // group[-1])
            for at in range(0, len(problems), width):
                left = max(0.0, deadline - time.perf_counter())
                budget = Budget(seconds=None if seconds is None else left)
                part = problems[at : at + width]
                strategy = make(group[-1])
                events = run_once(engine, part, strategy, group, budget, independent, options)
                if events[-1][0].stopped:
                    return
                for total, n, found in zip(sums, group, events, strict=False):
                    total.spend(found[0])
                    total.count(events[-1], strategy if independent else None, n, group[-1])
            for total, n in zip(sums, group, strict=True):
                yield total.point(name, n, dollars_per_hour)


@dataclass(frozen=True)
class Waves:
    """Independent paths, finished and scored up to each of `sizes` at a time."""

    sizes: Sequence[int]
    score: Scorer | None

    def run(self, run: Run) -> Iterator[Paths]:
        for start, end in pairwise([0, *self.sizes]):
            paths = run.fork(run.root, end - start, start)
            for _ in run.finish(paths):
                if self.score is not None:
                    run.score(paths, self.score)
            yield paths


def run_once(
    engine: Engine,
    prompts: Sequence[str],
    strategy: Strategy,
    group: list[int],
    budget: Budget,
    independent: bool,
    options: dict[str, Any],
) -> list[list[Result]]:
    """The results after each of the waves, or of the whole run; the last ones are final."""
    runner = Waves(group, getattr(strategy, "score", None)) if independent else strategy
    events = list(stream(engine, prompts, runner, budget, **options))
    return events if independent else events[-1:]


@dataclass
class Sums:
    """What a point is made of, over the parts of the problems."""

    solved: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def spend(self, result: Result) -> None:
        self.tokens += result.tokens
        self.flops += result.flops
        self.seconds += result.seconds

    def count(self, found: list[Result], strategy: Any, n: int, drawn: int) -> None:
        """Adds the outcome with n of the `drawn` paths; strategy None: of the whole run."""
        tree = found[0].tree
        if strategy is None:
            verified = {node.prompt for node in tree.nodes if node.verified}
            self.solved += [float(prompt in verified) for prompt in range(len(found))]
            self.chosen += [float(bool(result.verified)) for result in found]
            return
        for ended in finished(tree):
            right = sum(bool(tree.nodes[node].verified) for node in ended.values())
            self.solved.append(float(pass_at_k([right], [drawn], n)[0]))
            self.chosen.append(picked_right(tree, ended, strategy, n, drawn))

    def point(self, name: str, n: int, price: float | None) -> Point:
        count = len(self.solved)
        seconds = self.seconds / count
        return Point(
            strategy=name,
            n=n,
            problems=count,
            solved=bootstrap_interval(self.solved),
            chosen=bootstrap_interval(self.chosen),
            tokens=self.tokens / count,
            flops=self.flops / count,
            seconds=seconds,
            dollars=None if price is None else price * seconds / 3600,
        )


def finished(tree: SearchTree) -> list[dict[int, int]]:
    """Of each prompt, the paths that came to their end: {path id: its last node}."""
    ended: list[dict[int, int]] = [{} for _ in tree.prompts]
    for index, node in enumerate(tree.nodes):
        if node.end == "eos":
            ended[node.prompt][node.path] = index
    return ended


def picked_right(
    tree: SearchTree, ended: dict[int, int], strategy: Any, n: int, drawn: int
) -> float:
    """How often the strategy picks a right path from n: the mean over paths 0 to n - 1, n to 2n - 1, ..."""
    right = []
    for start in range(0, drawn - n + 1, n):
        nodes = [ended[path] for path in range(start, start + n) if path in ended]
        pick = strategy.pick(tree, nodes) if nodes else None
        right.append(pick is not None and bool(tree.nodes[pick].verified))
    return float(np.mean(right))
