"""Best of N: independent paths, the one a scorer likes best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..engine import Paths
from .events import Scorer
from .independent import Independent
from .run import Run
from .scores import Aggregate, mean_logprob, of_line, over_steps
from .tree import SearchTree


@dataclass(frozen=True)
class BestOfN(Independent):
    """`n` independent paths, ranked by `score` (of the whole path, or over its steps).

    Source: Cobbe et al. (arXiv 2110.14168); over steps, Lightman et al. (arXiv 2305.20050).
    """

    n: int = 64
    score: Scorer = mean_logprob
    aggregate: Aggregate = "last"

    def run(self, run: Run) -> Iterator[Paths]:
        paths = run.fork(run.root, self.n)
        for _ in run.finish(paths):
            run.score(paths, self.score)
            run.rank(paths, over_steps(run, paths, self.aggregate))
            yield paths

    def pick(self, tree: SearchTree, nodes: list[int]) -> int:
        """The answer among paths of one prompt, given as the nodes at which they ended."""
        return max(nodes, key=lambda node: of_line(tree, node, self.aggregate))
