"""REBASE: as many forks for a path as its score deserves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..engine import Paths
from .events import Scorer
from .run import Run


@dataclass(frozen=True)
class Rebase:
    """Reward-balanced search: `width` forks a prompt and step, shared out over its open paths in proportion
    to exp(score / temperature); what a prompt's finished paths took from the width is not forked again.

    Source: Wu et al. (arXiv 2408.00724).
    """

    score: Scorer
    width: int = 16
    temperature: float = 0.2

    def run(self, run: Run) -> Iterator[Paths]:
        paths = run.fork(run.root, self.width)
        width = np.full(len(run.root), self.width)
        while run.open(paths).any():
            run.step(paths)
            scores = run.score(paths, self.score).astype(np.float64)
            run.rank(paths, scores)
            yield paths
            width -= np.bincount(paths.prompt[run.finished(paths)], minlength=width.size)
            paths = run.drop_closed(paths)
            scores = scores[paths.parents]
            times = np.zeros(len(paths), np.int64)
            for prompt, rows in run.groups(paths):
                best = scores[rows].max()
                weight = (scores[rows] == best).astype(float)  # what an infinite score leaves
                if np.isfinite(best):
                    weight = np.exp((scores[rows] - best) / self.temperature)
                times[rows] = shares(weight, int(width[prompt]))
            paths = run.fork(paths, times)


def shares(weight: np.ndarray, total: int) -> np.ndarray:
    """`total` split in proportion to `weight`, whole numbers by largest remainder, ties to the first."""
    exact = weight / weight.sum() * total
    share = np.floor(exact).astype(np.int64)
    rest = total - int(share.sum())
    share[np.argsort(share - exact, kind="stable")[:rest]] += 1
    return np.asarray(share)
