"""curve: accuracy against compute, for several strategies and numbers of paths."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import Engine, Paths
from ..engine.arguments import whole_number
from . import asked, checks
from .budget import Budget
from .events import Scorer, Verifier
from .independent import is_independent
from .journal import Journal, JournalError
from .run import Run, Strategy
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
    journal: str | Path | Journal | None = None,
    **options: Any,
) -> Iterator[Point]:
    """Measures strategies at several numbers of paths; yields each point as soon as it is there.

    The paths of an `Independent` strategy are drawn once, at the largest size, in waves that end at
    each size: a run with 64 paths contains those with 1, 4 and 16. Its accuracy at n is the mean over all
    paths of the run, its cost that of the waves up to n. Other strategies run once a size. No path is
    stopped because another was verified.

    Args:
        problems: prompts, which share a batch as far as `rows` paths go.
        strategies: a name and what makes the strategy with n paths a prompt.
        verify: (prompt, text) -> bool, as for `solve`.
        sizes: numbers of paths, rising.
        seconds: for everything; a point that is not finished by then is not there.
        dollars_per_hour: the machine's price.
        journal: a file that keeps each part that is done, a strategy with one number of paths on as many
            problems as `rows` allows. The same call again takes what is there as done; strategies and
            sizes may differ, JournalError where anything else does. An interrupted part is done again.
            What is compared is said at `solve`: after a change to the code of a strategy, scorer or
            verifier take another journal.
        **options: of `solve`: tool, until, delimiter, max_new_tokens, seed, temperature, ...
    """
    problems, sizes = checks.texts("problems", problems), checks.sizes(sizes)
    checks.makers(strategies)
    checks.expect("verify", verify, callable(verify), "a function of (prompt, text)")
    checks.search(engine, Budget(seconds=seconds, dollars_per_hour=dollars_per_hour), options)
    rows = whole_number("rows", rows, 1)
    for name, make in strategies.items():
        for n in sizes:
            checks.strategy(make(n), f"strategies[{name!r}]({n})")
    deadline = time.perf_counter() + (np.inf if seconds is None else seconds)
    options = {**options, "verify": verify, "stop_when_verified": False}
    with contextlib.ExitStack() as stack:
        parts = Parts(None, "", {})
        if journal is not None:
            model = asked.model(engine)
            compared = {key: one for key, one in options.items() if key not in ("salt", "on_step")}
            if not isinstance(journal, Journal):
                request = {**model, "problems": list(problems), "rows": rows, **compared}
                journal = stack.enter_context(Journal(journal, asked.described(request)))
            parts = Parts(journal, model["model"], asked.described(compared))
        for name, make in strategies.items():
            independent = is_independent(make(sizes[-1]))
            for group in [list(sizes)] if independent else [[n] for n in sizes]:
                totals = [Sums() for _ in group]
                width = max(1, rows // group[-1])
                for at in range(0, len(problems), width):
                    left = max(0.0, deadline - time.perf_counter())
                    budget = Budget(seconds=None if seconds is None else left)
                    chosen, strategy = problems[at : at + width], make(group[-1])
                    measure = partial(
                        measured, engine, chosen, strategy, group, budget, independent, options
                    )
                    sums = parts.recall(name, strategy, group, chosen, measure)
                    if sums is None:
                        return
                    for total, one in zip(totals, sums, strict=True):
                        total.add(one)
                for total, n in zip(totals, group, strict=True):
                    yield total.point(name, n, dollars_per_hour)


class Parts:
    """The parts of a curve that are done, by what they are parts of."""

    def __init__(self, journal: Journal | None, model: str, options: dict[str, Any]) -> None:
        self.journal, self.model, self.options = journal, model, options
        records = [r for r in (journal.records() if journal else ()) if "part" in r]
        self.known = {json.dumps(record["part"]): record.get("sums") for record in records}

    def recall(
        self,
        name: str,
        strategy: Strategy,
        group: list[int],
        problems: Sequence[str],
        measure: Callable[[], list[Sums] | None],
    ) -> list[Sums] | None:
        """The sums of a part, measured if they are not known; None where time was up before."""
        if self.journal is None:
            return measure()
        part: dict[str, Any] = {
            "model": self.model,
            "strategy": [name, asked.described(strategy)],
            "sizes": group,
        }
        part |= {"problems": list(problems), "options": self.options}
        key = json.dumps(part)
        if key in self.known:
            return [Sums.known(values, self.journal.path) for values in self.known[key] or ()]
        sums = measure()
        if sums is not None:
            self.journal.append({"part": part, "sums": [vars(one) for one in sums]})
        return sums


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


def measured(
    engine: Engine,
    problems: Sequence[str],
    strategy: Strategy,
    group: list[int],
    budget: Budget,
    independent: bool,
    options: dict[str, Any],
) -> list[Sums] | None:
    """What the strategy makes of the problems with each number of paths; None where time was up before."""
    runner = Waves(group, getattr(strategy, "score", None)) if independent else strategy
    events = list(stream(engine, problems, runner, budget, **options))
    if events[-1][0].stopped:
        return None
    sums = []
    for n, found in zip(group, events if independent else events[-1:], strict=False):
        one = Sums(tokens=found[0].tokens, flops=found[0].flops, seconds=found[0].seconds)
        one.count(events[-1], strategy if independent else None, n, group[-1])
        sums.append(one)
    return sums


@dataclass
class Sums:
    """What a point is made of, over the parts of the problems."""

    solved: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    @classmethod
    def known(cls, values: Any, path: Path) -> Sums:
        """From a journal, whose numbers are checked."""
        try:
            made = cls(**values)
            numbers = [*made.solved, *made.chosen, made.tokens, made.flops, made.seconds]
            if not all(math.isfinite(n) and n >= 0 for n in numbers) or not made.solved:
                raise ValueError
        except (TypeError, ValueError):
            raise JournalError(f"{path}: holds a part whose sums are none") from None
        return made

    def add(self, other: Sums) -> None:
        self.solved += other.solved
        self.chosen += other.chosen
        self.tokens += other.tokens
        self.flops += other.flops
        self.seconds += other.seconds

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
