"""What of a run's budget paths may take, so that no run exceeds it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..engine import Paths
from ..engine.cache import Ints
from .budget import Meter


def owed(paths: Paths) -> float:
    """FLOPs of taking the tokens that have not been through the model there: a score or the next
    token will cost them."""
    with paths.lock:
        before = paths.engine.cache.lengths(paths.leaves)
    return paths.engine.prices.pass_flops(before, paths.lengths - before)


def fits(meter: Meter, paths: Paths) -> Callable[[int, int], bool]:
    """A function of (row, tokens): whether so many may be appended there, which it then spends."""
    limited = meter.budget.flops is not None
    waiting = owed(paths) if limited else 0.0

    def fit(row: int, size: int) -> bool:
        nonlocal waiting
        length, price = int(paths.lengths[row]), 0.0
        if limited:
            price = paths.engine.prices.pass_flops(np.array([length]), np.array([size]))
        if length + size > paths.engine.max_length or not meter.affords(size, waiting + price):
            return False
        waiting += price
        meter.spend(size, 0.0)
        return True

    return fit


def share(meter: Meter, paths: Paths, left: Ints) -> Ints:
    """How many of the tokens they may still write paths get at once, so that all of them together stay
    within the budget: an equal share, and one more for the first."""
    wanted = np.maximum(left, 0)
    if meter.exhausted or not wanted.any():
        return np.zeros_like(wanted)
    running = np.flatnonzero(wanted)
    budget = meter.budget
    room = {"tokens": np.inf if budget.tokens is None else budget.tokens - meter.tokens}
    if budget.flops is not None:
        prices = paths.engine.prices
        longest = int(paths.lengths[running].max()) + int(wanted[running].max())
        token = prices.body + prices.head + prices.attention * longest
        room["flops"] = (budget.flops - meter.flops - owed(paths)) // token
    limit, rest = min(room.items(), key=lambda each: each[1])
    if rest < 1:  # no room for another token
        meter.cut = limit
    if rest >= wanted.sum():
        return wanted
    each, more = divmod(int(max(rest, 0)), running.size)
    given = np.zeros_like(wanted)
    given[running] = each
    given[running[:more]] += 1
    return np.minimum(given, wanted)
