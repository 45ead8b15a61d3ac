"""Countdown under search: what a strategy needs to know of the task, as callables for `pyttc.solve`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ..engine import LinearHead
from ..search import Sandbox, Tool
from . import countdown_text
from .countdown_text import (
    DELIMITER,
    calculate,
    last_attempt,
    last_line,
    problem_of,
    split_steps,
)

MAX_NEW_TOKENS = 160  # of a path: a text of five numbers, calculator included, has at most 120


def options(*, direct: bool = False, attempts: bool = False) -> dict[str, Any]:
    """The keyword arguments of `pyttc.solve` for Countdown prompts: verifier, calculator, delimiter.

    Args:
        direct: the model writes results itself, without the calculator.
        attempts: a path may hold several attempts, each behind a prompt of its own, as `again` writes
            them; the last one counts.
    """
    tool = None if direct else Tool("=", _reply_last if attempts else _reply)
    limit = MAX_NEW_TOKENS * (4 if attempts else 1)
    check = verifier("verify_last" if attempts else "verify")
    return {"verify": check, "tool": tool, "delimiter": DELIMITER, "max_new_tokens": limit}


@cache
def verifier(name: str) -> Sandbox:
    """A verifier of `countdown_text` in a process of its own. It reads what it is given and runs none of it,
    so that many texts may share a fork."""
    return Sandbox(f"{countdown_text.__name__}:{name}", seconds=10.0, texts=256)


def _reply(prompt: str, text: str) -> str | None:
    """What the calculator appends behind `45-23=`; None, which ends the path, for an illegal step."""
    problem = problem_of(prompt)
    return None if problem is None else calculate(problem, text)


def _reply_last(prompt: str, text: str) -> str | None:
    return _reply(prompt, last_attempt(prompt, text))


def again(prompt: str, text: str) -> str:
    """What revision appends to a failed attempt: the prompt once more, as after a solved example."""
    return last_line(prompt)


def claimed_number(text: str) -> str | None:
    """The number that the last step of a text claims, to vote on: nobody looks at the target. None where
    there is no step, or where the calculator listed more than one number behind it."""
    parts = split_steps(text)
    claim, _, listed = parts[-1].removesuffix(DELIMITER).partition("|") if parts else ("", "", "")
    return None if "," in listed or "=" not in claim else claim.rpartition("=")[2]


def reward_head(folder: str | Path, name: str = "exact") -> LinearHead | None:
    """The process-reward head beside a model's weights, "exact" or "monte_carlo"; None without one."""
    path = Path(folder) / f"reward_{name}.safetensors"
    return LinearHead.from_file(str(path)) if path.exists() else None


def steps_shown(text: str) -> str:
    """A text for people: its steps without what the calculator listed, `45-23=22, 67-12=55`."""
    return ", ".join(part.removesuffix(DELIMITER).partition("|")[0] for part in split_steps(text))
