"""A small search, its journal, and what has to be equal when it is taken up again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pyttc import search
from pyttc.engine import LinearHead
from pyttc.search.names import Means, named
from pyttc.tasks import countdown_search as countdown

TIMES = ("seconds", "dollars", "solved_after")


def untimed(value: Any) -> Any:
    """Without what a clock says, at any depth."""
    if isinstance(value, dict):
        return {key: untimed(one) for key, one in value.items() if key not in TIMES}
    return [untimed(one) for one in value] if isinstance(value, list) else value


def bits(found: list[search.Result]) -> Any:
    """All of results but their times: every token, log-probability, score, answer and cost."""
    cost = found[0].cost
    shown = [{**vars(result), "tree": None, "cost": None} for result in found]
    return untimed([asdict(found[0].tree), vars(cost.ran), vars(cost.unshared), shown])


def solve(
    engine: Any, prompts: list[str], name: str, head: LinearHead | None, **options: Any
) -> Any:
    """The bits of a run of the strategy of that name."""
    means = Means(head, countdown.claimed_number, countdown.again, wait="4")
    given = {**countdown.options(attempts=name == "revision"), "seed": 3, **options}
    if name == "self-certainty":
        given["confidence"] = 4
    return bits(search.solve(engine, prompts, named(name, 8, means), **given))
