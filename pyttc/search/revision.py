"""Thinking longer in one line: sequential revision and budget forcing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..engine import Paths
from .events import Scorer
from .run import Run
from .scores import mean_logprob


@dataclass(frozen=True)
class Revision:
    """`n` lines a prompt; one that finished without being verified is asked again, its failed attempts in
    view, up to `rounds` times: `again(prompt, text)` is what is appended.

    Source: Snell et al. (arXiv 2408.03314), sequential revisions.
    """

    again: Callable[[str, str], str]
    n: int = 4
    rounds: int = 4
    score: Scorer = mean_logprob

    def run(self, run: Run) -> Iterator[Paths]:
        paths = run.fork(run.root, self.n)
        for attempt in range(self.rounds):
            for _ in run.finish(paths):
                run.rank(paths, run.score(paths, self.score))
                yield paths
            retry = run.finished(paths) & ~run.solved[paths.prompt]
            if attempt + 1 == self.rounds or run.stopped or not retry.any():
                return
            texts = paths.text()
            prompts = [run.tree.prompts[p] for p in paths.prompt.tolist()]
            asked = zip(prompts, texts, retry.tolist(), strict=True)
            run.append(paths, [self.again(p, text) if yes else "" for p, text, yes in asked])


@dataclass(frozen=True)
class BudgetForcing:
    """`n` lines a prompt that may not stop before `min_tokens`: an end of text that comes too early is taken
    back and `wait` appended in its place, at most `times` times.

    Source: Muennighoff et al., s1 (arXiv 2501.19393).
    """

    min_tokens: int
    wait: str = "Wait"
    times: int = 8
    n: int = 1
    score: Scorer = mean_logprob

    def run(self, run: Run) -> Iterator[Paths]:
        paths = run.fork(run.root, self.n)
        for _ in range(self.times + 1):
            yield from run.finish(paths)
            run.rank(paths, run.score(paths, self.score))
            early = run.finished(paths) & (paths.new_lengths < self.min_tokens)
            early &= ~run.solved[paths.prompt]
            if run.stopped or not early.any():
                return
            texts = np.where(early, self.wait, "").tolist()
            run.append(paths, texts, keep_eos=False)
