"""Sample N: independent paths until one is verified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..engine import Paths
from .run import Run


@dataclass(frozen=True)
class SampleN:
    """`n` independent paths; with a verifier the first verified one ends the prompt's search.

    Source: Brown et al., "Large Language Monkeys" (arXiv 2407.21787).
    """

    n: int = 64

    def run(self, run: Run) -> Iterator[Paths]:
        paths = run.fork(run.root, self.n)
        for _ in run.finish(paths):
            run.rank(paths, np.zeros(len(paths)))
            yield paths
