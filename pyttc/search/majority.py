"""Majority vote, and its adaptive forms that stop when more votes cannot matter."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine import Paths
from .events import Scorer
from .independent import Independent
from .run import Run
from .tree import SearchTree

Answer = Callable[[str], Any]


def tally(
    run: Run, paths: Paths, answer: Answer, score: Scorer | None
) -> dict[int, dict[Any, float]]:
    """Votes for each answer of each prompt, from the paths that finished; makes the winners the answers.

    An answer is anything hashable, None no vote. Ties go to the answer given first.
    """
    weights = np.ones(len(paths)) if score is None else run.score(paths, score)
    votes: dict[int, dict[Any, float]] = defaultdict(lambda: defaultdict(float))
    first: dict[tuple[int, Any], int] = {}
    nodes = run.nodes(paths)
    for row in np.flatnonzero(run.finished(paths)).tolist():
        given = answer(run.tree.text(nodes[row]))
        if given is not None:
            prompt = int(paths.prompt[row])
            votes[prompt][given] += float(weights[row])
            first.setdefault((prompt, given), nodes[row])
    for prompt, counts in votes.items():
        if not run.solved[prompt]:
            run.choose(prompt, first[prompt, max(counts, key=lambda given: counts[given])])
    return votes


@dataclass(frozen=True)
class Majority(Independent):
    """`n` independent paths; the answer most of them give, each vote weighted by `score` if there is one.

    Source: Wang et al., self-consistency (arXiv 2203.11171).
    """

    answer: Answer
    n: int = 64
    score: Scorer | None = None

    def run(self, run: Run) -> Iterator[Paths]:
        paths = run.fork(run.root, self.n)
        for _ in run.finish(paths):
            tally(run, paths, self.answer, self.score)
            yield paths

    def pick(self, tree: SearchTree, nodes: list[int]) -> int | None:
        """The answer among paths of one prompt, given as the nodes at which they ended; None without a
        vote."""
        votes: dict[Any, float] = defaultdict(float)
        first: dict[Any, int] = {}
        for node in nodes:
            given = self.answer(tree.text(node))
            if given is not None:
                votes[given] += 1.0 if self.score is None else tree.nodes[node].score or 0.0
                first.setdefault(given, node)
        return first[max(votes, key=lambda given: votes[given])] if votes else None


@dataclass(frozen=True)
class AdaptiveConsistency:
    """Majority in waves of `wave` paths, at most `n`, until the leader stays the leader with a
    probability of `confidence`: Beta(first + 1, second + 1) above one half.

    Source: Aggarwal et al., ASC (arXiv 2305.11860).
    """

    answer: Answer
    n: int = 64
    wave: int = 4
    confidence: float = 0.95

    def certain(self, votes: list[float]) -> bool:
        first, second = [*sorted(votes, reverse=True), 0.0, 0.0][:2]
        return leader_holds(first, second) >= self.confidence

    def run(self, run: Run) -> Iterator[Paths]:
        waves: list[Paths] = []
        certain: set[int] = set()
        for start in range(0, self.n, self.wave):
            ask = np.array([p not in certain and not run.solved[p] for p in run.root.prompt])
            if not ask.any() or run.stopped:
                return
            paths = run.fork(run.root, np.where(ask, min(self.wave, self.n - start), 0), start)
            waves.append(paths)
            yield from run.finish(paths)
            total: dict[int, dict[Any, float]] = defaultdict(lambda: defaultdict(float))
            for wave in waves:
                for prompt, votes in tally(run, wave, self.answer, None).items():
                    for given, count in votes.items():
                        total[prompt][given] += count
            last = tally(run, paths, self.answer, None)
            for prompt, votes in total.items():
                leader = max(votes, key=lambda given: votes[given])
                self.lead(run, waves, prompt, leader)
                latest = last.get(prompt, {})
                if self.certain(list(votes.values())) or self.settled(latest, self.wave):
                    certain.add(prompt)
            yield paths

    def settled(self, wave: dict[Any, float], asked: int) -> bool:
        """Whether a wave alone ends the search."""
        return False

    def lead(self, run: Run, waves: list[Paths], prompt: int, leader: Any) -> None:
        if run.solved[prompt]:
            return
        for paths in waves:
            nodes = run.nodes(paths)
            for row in np.flatnonzero(run.finished(paths) & (paths.prompt == prompt)).tolist():
                if self.answer(run.tree.text(nodes[row])) == leader:
                    run.choose(prompt, nodes[row])
                    return


@dataclass(frozen=True)
class EarlyStopping(AdaptiveConsistency):
    """Majority in waves until all paths of one wave agree.

    Source: Li et al., ESC (arXiv 2401.10480).
    """

    def certain(self, votes: list[float]) -> bool:
        return False

    def settled(self, wave: dict[Any, float], asked: int) -> bool:
        return len(wave) == 1 and sum(wave.values()) == asked


def leader_holds(first: float, second: float) -> float:
    """P(X > 1/2) for X ~ Beta(first + 1, second + 1), whole votes: a binomial tail."""
    a, b = round(first), round(second)
    trials = a + b + 1
    return float(sum(math.comb(trials, k) for k in range(a + 1)) / 2**trials)
