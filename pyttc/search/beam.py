"""Beam search over steps with process scores, and its diverse form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..engine import Paths
from ..engine.cache import Ints
from .events import Scorer
from .run import Run
from .scores import Aggregate, over_steps


@dataclass(frozen=True)
class Beam:
    """Beam search over steps: of `width` paths a prompt the best `width // expand` live on, each forked
    into `expand`; those that finish leave the beam and are ranked.

    Args:
        score: of a path up to its last step, such as a LinearHead.
        lookahead: steps each path is rolled out, at temperature 0, before it is scored; then the rollout is
            dropped.
        distinct: of paths that wrote the same text only the first lives on.

    Source: Snell et al. (arXiv 2408.03314), with lookahead; Yao et al. (arXiv 2305.10601).
    """

    score: Scorer
    width: int = 16
    expand: int = 4
    aggregate: Aggregate = "last"
    lookahead: int = 0
    distinct: bool = True

    def run(self, run: Run) -> Iterator[Paths]:
        paths = run.fork(run.root, self.width)
        while run.open(paths).any():
            run.step(paths)
            scores = self.scores(run, paths)
            run.rank(paths, scores)
            yield paths
            paths = run.select(paths, self.survivors(run, paths, scores))
            paths = run.fork(paths, self.expand)

    def scores(self, run: Run, paths: Paths) -> np.ndarray:
        if not self.lookahead:
            run.score(paths, self.score)
            return over_steps(run, paths, self.aggregate)
        ahead = run.fork(paths, 1)
        for _ in range(self.lookahead):
            run.step(ahead, temperature=0.0)
        seen = run.score(ahead, self.score).tolist()
        for node, score in zip(run.nodes(paths), seen, strict=True):
            if node >= 0:
                run.tree.nodes[node].score = score
        return over_steps(run, paths, self.aggregate)

    def survivors(self, run: Run, paths: Paths, scores: np.ndarray) -> Ints:
        """Rows that live on: the best of each prompt's open paths, ties to the first."""
        order = np.where(run.open(paths), scores, -np.inf)
        if self.distinct:
            order[repeated(run, paths)] = -np.inf
        kept = []
        for _, rows in run.groups(paths):
            best = rows[np.argsort(-order[rows], kind="stable")][
                : max(1, self.width // self.expand)
            ]
            kept.append(best[order[best] > -np.inf])
        return np.concatenate(kept) if kept else np.zeros(0, np.int64)


def repeated(run: Run, paths: Paths) -> Ints:
    """The rows of paths whose last step says the same as that of an earlier row with the same steps
    before it."""
    seen: set[tuple[int, int, str]] = set()
    again = []
    for row, index in enumerate(run.nodes(paths)):
        node = run.tree.nodes[index]
        key = node.prompt, node.parent, node.text
        if key in seen:
            again.append(row)
        seen.add(key)
    return np.array(again, np.int64)


@dataclass(frozen=True)
class DVTS(Beam):
    """Diverse verifier tree search: `width // expand` beams of one path each, side by side, so that one good
    score does not crowd out the others.

    Source: Beeching, Tunstall and Rush, "Scaling test-time compute with open models" (2024).
    """

    def survivors(self, run: Run, paths: Paths, scores: np.ndarray) -> Ints:
        order = np.where(run.open(paths), scores, -np.inf)
        kept = []
        for _, rows in run.groups(paths):
            # forks of one path stand side by side
            for family in np.split(rows, np.arange(self.expand, rows.size, self.expand)):
                best = int(family[np.argmax(order[family])])
                if order[best] > -np.inf:
                    kept.append(best)
        return np.array(kept, np.int64)
