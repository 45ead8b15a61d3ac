"""The strategies by the names the literature calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .beam import DVTS, Beam
from .best_of_n import BestOfN
from .events import Scorer
from .greedy import Greedy
from .majority import AdaptiveConsistency, Answer, EarlyStopping, Majority
from .particle_filter import ParticleFilter
from .rebase import Rebase
from .revision import BudgetForcing, Revision
from .run import Strategy
from .sample_n import SampleN
from .scores import mean_logprob, self_certainty


@dataclass(frozen=True)
class Means:
    """What a task gives strategies to work with.

    Args:
        score: of a path up to its last step, a process reward; None: there is none.
        answer: the answer in a text, to vote on.
        again: what revision appends to a failed attempt.
        wait, min_tokens: what budget forcing appends, and up to which length.
    """

    score: Scorer | None = None
    answer: Answer = str.strip
    again: Callable[[str, str], str] | None = None
    wait: str | None = None
    min_tokens: int = 64


def expand(n: int) -> int:
    """Forks a beam: 4, or what is left of a narrow one."""
    return min(4, n)


WAVES = (4, 8, 16, 32, 64, 128, 256, 512)
Maker = Callable[[int, Means, Scorer], Strategy]
PATHS: dict[str, Maker] = {
    "greedy": lambda n, means, score: Greedy(),
    "sample-n": lambda n, means, score: SampleN(n, waves=WAVES),
    "best-of-n": lambda n, means, score: BestOfN(n, means.score or mean_logprob),
    "logprob": lambda n, means, score: BestOfN(n, mean_logprob),
    "self-certainty": lambda n, means, score: BestOfN(n, self_certainty),
    "majority": lambda n, means, score: Majority(means.answer, n),
    "asc": lambda n, means, score: AdaptiveConsistency(means.answer, n),
    "esc": lambda n, means, score: EarlyStopping(means.answer, n),
}
REWARD: dict[str, Maker] = {
    "weighted-vote": lambda n, means, score: Majority(means.answer, n, score),
    "beam": lambda n, means, score: Beam(score, n, expand(n)),
    "lookahead": lambda n, means, score: Beam(score, n, expand(n), lookahead=1),
    "dvts": lambda n, means, score: DVTS(score, n, expand(n)),
    "rebase": lambda n, means, score: Rebase(score, n),
    "particle-filter": lambda n, means, score: ParticleFilter(score, n),
}
NAMES = (*PATHS, *REWARD, "revision", "budget-forcing")


def named(name: str, n: int, means: Means) -> Strategy:
    """The strategy of a name with `n` paths a prompt (beam and its kin: that width).

    "best-of-n" ranks by the process reward where there is one, else by log-probability.

    Raises:
        ValueError: for an unknown name, or where the strategy needs what `means` does not have.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, expected a number of paths >= 1")
    if name in PATHS:
        return PATHS[name](n, means, mean_logprob)
    if name in REWARD:
        if means.score is None:
            raise ValueError(f"{name}: needs a process reward, and this model has none beside it")
        return REWARD[name](n, means, means.score)
    if name == "revision":
        if means.again is None:
            raise ValueError("revision: needs to know how to ask again")
        rounds = min(4, n)
        return Revision(means.again, -(-n // rounds), rounds, means.score or mean_logprob)
    if name == "budget-forcing":
        if means.wait is None:
            raise ValueError("budget-forcing: needs a text to go on with, such as 'Wait'")
        return BudgetForcing(means.min_tokens, means.wait, n=n)
    raise ValueError(f"strategy: got {name!r}, expected one of {', '.join(NAMES)}")
