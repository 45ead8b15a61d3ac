"""Countdown under search: what a strategy needs to know of the task, as callables for `pyttc.solve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..engine import LinearHead
from ..search import Tool
from .countdown_text import DELIMITER, EOS, calculate, problem_of, split_steps, verify

MAX_NEW_TOKENS = 160  # of a path: a text of five numbers, calculator included, has at most 120
Value = TypeVar("Value")


def options(*, direct: bool = False, attempts: bool = False) -> dict[str, Any]:
    """The keyword arguments of `pyttc.solve` for Countdown prompts: verifier, calculator, delimiter.

    Args:
        direct: the model writes results itself, without the calculator.
        attempts: a path may hold several attempts, each behind a prompt of its own, as `again` writes
            them; the last one counts.
    """
    check, reply = (last_attempt(verify), last_attempt(_reply)) if attempts else (verify, _reply)
    tool = None if direct else Tool("=", reply)
    limit = MAX_NEW_TOKENS * (4 if attempts else 1)
    return {"verify": check, "tool": tool, "delimiter": DELIMITER, "max_new_tokens": limit}


def _reply(prompt: str, text: str) -> str | None:
    """What the calculator appends behind `45-23=`; None, which ends the path, for an illegal step."""
    problem = problem_of(prompt)
    return None if problem is None else calculate(problem, text)


def last_attempt(function: Callable[[str, str], Value]) -> Callable[[str, str], Value]:
    """The function of (prompt, text), given only what follows the last prompt within the text."""

    def of_last(prompt: str, text: str) -> Value:
        line = last_line(prompt)
        at = text.rfind(line) if line else -1
        return function(prompt, text[at + len(line) :] if at >= 0 else text)

    return of_last


def again(prompt: str, text: str) -> str:
    """What revision appends to a failed attempt: the prompt once more, as after a solved example."""
    return last_line(prompt)


def last_line(prompt: str) -> str:
    return prompt[prompt.rfind(EOS) + 1 :]


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
