"""Budget: how much thinking a run may do, in whichever unit runs out first."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from numbers import Integral, Real
from operator import index
from typing import Any


@dataclass(frozen=True)
class Budget:
    """What a run may spend. The first exhausted limit stops it; None is no limit.

    Args:
        tokens: new tokens, decoded by the model or forced with `append`, over all paths and prompts.
        seconds: wall time from the start of the run.
        flops: floating-point operations of prefill, decoding and scoring together, as `Cost` counts them.
        dollars: money at `dollars_per_hour`, the price of the machine.

    Tokens and FLOPs are obeyed before they are spent: a step that would pass the limit is shortened, so
    no run exceeds them, but for the prompts, which are always read, and what a scorer of one's own adds.
    Seconds and dollars are looked at after every decoding step.

    Raises:
        TypeError, ValueError: for anything but a whole number of tokens and finite numbers of the rest, all
            of them >= 0, and for dollars without a price.
    """

    tokens: int | None = None
    seconds: float | None = None
    flops: float | None = None
    dollars: float | None = None
    dollars_per_hour: float | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "seconds", "flops", "dollars", "dollars_per_hour"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, limit(name, value))
        if self.dollars is not None and not self.dollars_per_hour:
            raise ValueError(
                f"dollars_per_hour: got {self.dollars_per_hour!r}, expected the machine's price, since "
                "dollars is limited"
            )

    @property
    def deadline(self) -> float:
        """Seconds a run may take: the sooner of `seconds` and what `dollars` buy."""
        bought = math.inf
        if self.dollars is not None and self.dollars_per_hour:
            bought = self.dollars / self.dollars_per_hour * 3600
        return min(bought, math.inf if self.seconds is None else self.seconds)


def limit(name: str, value: Any) -> int | float:
    """A limit of a budget, if it can be one."""
    whole = name == "tokens"
    kind: Any = Integral if whole else Real
    expected = f"a {'whole' if whole else 'finite'} number >= 0 or None"
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    try:
        found = index(value) if whole else float(value)
    except OverflowError:
        found = math.inf
    if not 0 <= found < math.inf:
        raise ValueError(f"{name}: got {value!r:.40}, expected {expected}")
    return found


class Meter:
    """What a run has spent of its budget, and which limit stopped it.

    Attributes:
        seconds: wall time up to the last look at the clock, `tick`. What is decided by time is decided by
            this, so that a run that is repeated from its journal decides the same.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.tokens = 0
        self.flops = 0.0
        self.cut: str | None = None  # what ended the run before a limit was met exactly
        self.resume(0.0)

    def resume(self, seconds: float) -> None:
        """Goes on from `seconds` that earlier runs took."""
        self.seconds, self._start = seconds, time.perf_counter() - seconds

    def tick(self) -> None:
        self.seconds = time.perf_counter() - self._start

    @property
    def dollars(self) -> float | None:
        price = self.budget.dollars_per_hour
        return None if price is None else self.seconds / 3600 * price

    def spend(self, tokens: int, flops: float) -> None:
        self.tokens += tokens
        self.flops += flops

    def affords(self, tokens: int, flops: float = 0.0) -> bool:
        """Whether `tokens` more tokens that cost `flops` stay within every limit."""
        budget = self.budget
        return (
            (budget.tokens is None or self.tokens + tokens <= budget.tokens)
            and (budget.flops is None or self.flops + flops <= budget.flops)
            and self.seconds < budget.deadline
        )

    @property
    def exhausted(self) -> str | None:
        """The name of the limit that is reached, "interrupted", or None."""
        if self.cut:
            return self.cut
        budget, seconds = self.budget, self.seconds
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return "tokens"
        if budget.flops is not None and self.flops >= budget.flops:
            return "flops"
        if seconds >= budget.deadline:
            return "seconds" if budget.seconds == budget.deadline else "dollars"
        return None
