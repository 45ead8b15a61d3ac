"""Greedy: the one path at temperature 0, what thinking no further gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..engine import Paths
from .run import Run


@dataclass(frozen=True)
class Greedy:
    """One path a prompt, the likeliest token at each place."""

    def run(self, run: Run) -> Iterator[Paths]:
        for paths in run.finish(run.fork(run.root, 1), temperature=0.0):
            run.rank(paths, np.zeros(len(paths)))
            yield paths
