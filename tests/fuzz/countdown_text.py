"""Countdown's verifier and calculator on any text: an answer, never an exception, and no wrong yes."""

from __future__ import annotations

import re

from pyttc.tasks import countdown_text
from tests.fuzz import Reader, patched

PROMPT, TEXT = "23,45,67,12>57:", "45-23=22|22,67,12;67-22=45|45,12;45+12=57|57;\n"
WHOLE = (PROMPT + TEXT).encode()
SEEDS = (b"", b"\x01\x05\x00\x02\x39\x39\x02", bytes(range(40)))


def target(data: bytes) -> None:
    reader = Reader(data)
    whole = patched(WHOLE, reader) if reader.below(4) else reader.left()
    text = whole.decode("utf-8", "replace")
    prompt, colon, written = text.partition(":")
    prompt += colon
    problem = countdown_text.problem_of(prompt)
    legal = countdown_text.steps_legal(prompt, written)
    solved = countdown_text.verify(prompt, written)
    if problem is not None:
        for part in written.split(";")[:4]:
            countdown_text.calculate(problem, part + "=")
        countdown_text.calculate(problem, written)
    if not solved:
        return
    assert problem is not None and all(legal)
    numbers = sorted(problem.numbers)
    for step in re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", written):
        left, op, right, result = int(step[0]), step[1], int(step[2]), int(step[3])
        numbers.remove(left)
        numbers.remove(right)
        exact = {"+": left + right, "-": left - right, "*": left * right}
        assert result * right == left if op == "/" else result == exact[op]
        numbers.append(result)
    assert numbers == [problem.target]
