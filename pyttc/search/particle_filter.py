"""Particle filtering: paths as weighted samples, resampled when few of them carry the weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..engine import Paths
from .events import Scorer
from .run import Run


@dataclass(frozen=True)
class ParticleFilter:
    """Sequential Monte Carlo: `n` particles a prompt, weighted by `score` after each step (a probability
    that the path is right, so that a step multiplies its weight by new score / old score), and resampled
    systematically where the effective sample size falls under `threshold` * n.

    Finished particles take part with the weight they ended with.

    Source: Puri et al. (arXiv 2502.01618); systematic resampling, Carpenter et al. (1999).
    """

    score: Scorer
    n: int = 16
    threshold: float = 0.5

    def run(self, run: Run) -> Iterator[Paths]:
        paths = run.fork(run.root, self.n)
        base = np.zeros(len(paths))  # log of the score at which a particle was last resampled
        draw = np.random.default_rng(run.seed)
        while run.open(paths).any():
            run.step(paths)
            scores = run.score(paths, self.score).astype(np.float64)
            run.rank(paths, scores)
            yield paths
            logs = np.log(np.clip(scores, 1e-12, 1e300))
            chosen, bases = [], []
            for _, rows in run.groups(paths):
                weight = np.exp(logs[rows] - base[rows] - (logs[rows] - base[rows]).max())
                weight /= weight.sum()
                u = draw.random()
                if 1 / (weight**2).sum() < self.threshold * rows.size:
                    picked = rows[systematic(weight, u)]
                    chosen.append(picked)
                    bases.append(logs[picked])
                else:
                    chosen.append(rows)
                    bases.append(base[rows])
            base = np.concatenate(bases)
            run.select(paths, np.concatenate(chosen))


def systematic(weight: np.ndarray, u: float) -> np.ndarray:
    """As many indices as weights, index i about n * weight[i] times: one uniform `u` in [0, 1) places
    them all."""
    points = (np.arange(weight.size) + u) / weight.size
    return np.minimum(np.searchsorted(np.cumsum(weight), points, side="right"), weight.size - 1)
