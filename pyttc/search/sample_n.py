"""Sample N: independent paths until one is verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..engine import Paths
from .independent import Independent
from .run import Run
from .tree import SearchTree


@dataclass(frozen=True)
class SampleN(Independent):
    """`n` independent paths; with a verifier the first verified one ends the prompt's search.

    With `waves` = (4, 16), the first 4 are finished first, then 12 more for the prompts that are not
    solved, then the rest: the same paths, fewer of them wasted.

    Source: Brown et al., "Large Language Monkeys" (arXiv 2407.21787).
    """

    n: int = 64
    waves: tuple[int, ...] = ()

    def run(self, run: Run) -> Iterator[Paths]:
        for paths in independent(run, self.n, self.waves):
            run.rank(paths, np.zeros(len(paths)))
            yield paths

    def pick(self, tree: SearchTree, nodes: list[int]) -> int:
        """The answer among paths of one prompt where nobody verifies: the first."""
        return nodes[0]


def independent(run: Run, n: int, waves: Sequence[int] = ()) -> Iterator[Paths]:
    """Forks 0 to `n` of every prompt, up to each number of `waves` at a time, decoded to their ends;
    yields after every step the paths it is at."""
    ends = [end for end in waves if 0 < end < n]
    for start, end in pairwise([0, *ends, n]):
        asked = np.where(run.solved, 0, end - start)
        if run.stopped or not asked.any():
            return
        yield from run.finish(run.fork(run.root, asked, start))
