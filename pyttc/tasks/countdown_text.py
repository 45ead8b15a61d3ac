"""How Countdown is written: prompts, the two formats, the calculator, the verifier of texts.

    23,45,67,12>57:45-23=22|22,67,12;67-22=45|45,12;45+12=57|57;    with the calculator
    23,45,67,12>57:45-23=22;67-22=45;45+12=57;                      direct

The model writes a step up to `=`. With the calculator, the tool then appends the result, a bar, the
numbers now left (the result first) and the delimiter; without it, the model writes result and
delimiter itself. The prompt is the same: who writes after `=` decides. A text ends with a newline,
so solved examples before a prompt are just lines. What a model wrote is not trusted: it is split
and compared, never evaluated.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from .countdown import (
    Problem,
    Step,
    after,
    apply,
    generate,
    is_legal,
    parse_number,
    parse_step,
    solve,
)

DELIMITER = ";"
EOS = "\n"
PAD = "<pad>"
VOCABULARY = [PAD, EOS, *"0123456789", *"+-*/=,;:>|"]
MAX_TEXT = 1000  # characters of one line; longer ones are not looked at
MAX_NUMBERS = 8


def prompt(problem: Problem, examples: Sequence[str] = ()) -> str:
    """The text before the first step. `examples`: solved lines, as example_lines gives them."""
    return f"{''.join(examples)}{problem}:"


def calculator(result: int, numbers: Sequence[int]) -> str:
    """What the calculator appends after `45-23=`, given the numbers then left: `22|22,67,12;`."""
    return f"{result}|{','.join(map(str, numbers))}{DELIMITER}"


def solution_text(problem: Problem, steps: Sequence[Step], *, direct: bool = False) -> str:
    """The steps as a model and its calculator would write them after the prompt, newline
    included."""
    text, numbers = "", problem.numbers
    for step in steps:
        numbers = after(numbers, step)
        head = f"{step.left}{step.op}{step.right}="
        text += head + (f"{step.result}{DELIMITER}" if direct else calculator(step.result, numbers))
    return text + EOS


def example_lines(
    count: int, *, seed: int, sizes: Sequence[int] = (3, 4), direct: bool = False
) -> list[str]:
    """`count` solved problems of the training split, to be put before a prompt (about 55 characters
    each). The first lines of a longer list are the shorter list."""
    draw = random.Random(f"examples {seed}")  # noqa: S311
    lines = []
    for i in range(count):
        problem = generate(1, draw.choice(sizes), seed=draw.getrandbits(32) + i, test=False)[0]
        steps = solve(problem, draw)
        assert steps is not None  # noqa: S101
        lines.append(prompt(problem) + solution_text(problem, steps, direct=direct))
    return lines


def parse_problem(text: str) -> Problem | None:
    """`23,45,67,12>57` as a Problem; None for anything else."""
    left, _, right = text[:MAX_TEXT].partition(">")
    numbers = [parse_number(part) for part in left.split(",", MAX_NUMBERS)]
    target = parse_number(right)
    if target is None or None in numbers or len(numbers) > MAX_NUMBERS:
        return None
    return Problem(tuple(n for n in numbers if n is not None), target)


def problem_of(text: str) -> Problem | None:
    """The problem that a prompt ends with, whatever examples stand before it."""
    line = text[text.rfind(EOS) + 1 :]
    return parse_problem(line[:-1]) if line.endswith(":") else None


def calculate(problem: Problem, text: str) -> str | None:
    """What the calculator appends to `text`, all that follows the prompt, which must end with `=`.

    None where the last step is illegal or an earlier one false: such a path cannot be continued.
    """
    *before, head = text[:MAX_TEXT].split(DELIMITER)
    numbers, _ = follow(problem, [part + DELIMITER for part in before])
    body = head[:-1]
    for op in "+-*/":
        left, found, right = body.partition(op)
        a, b = parse_number(left), parse_number(right)
        if found and a is not None and b is not None and head.endswith("="):
            result = apply(a, op, b)
            if result is not None and len(numbers) == len(problem.numbers) - len(before):
                step = Step(a, op, b, result)
                if is_legal(numbers, step):
                    return calculator(result, after(numbers, step))
    return None


def follow(problem: Problem, parts: Sequence[str]) -> tuple[tuple[int, ...], int]:
    """The numbers left after the leading `parts` that are legal steps in either format, each with
    its delimiter, and how many of them are."""
    numbers = problem.numbers
    for count, part in enumerate(parts):
        claim, bar, listed = part.removesuffix(DELIMITER).partition("|")
        step = parse_step(claim)
        if step is None or not part.endswith(DELIMITER) or not is_legal(numbers, step):
            return numbers, count
        rest = after(numbers, step)
        if bar and listed != ",".join(map(str, rest)):
            return numbers, count
        numbers = rest
    return numbers, len(parts)


def split_steps(text: str) -> list[str]:
    """A text after the prompt, cut behind each delimiter; the newline at its end does not count."""
    parts = text[:MAX_TEXT].removesuffix(EOS).split(DELIMITER)
    return [part + DELIMITER for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def verify(prompt: str, text: str) -> bool:
    """Whether `text` solves the problem `prompt` ends with: every step legal and true, every number
    used once, nothing else in the text, the target at the end. In either format, or a mix."""
    problem = problem_of(prompt)
    if problem is None or len(text) > MAX_TEXT:
        return False
    parts = split_steps(text)
    numbers, legal = follow(problem, parts)
    return legal == len(parts) and numbers == (problem.target,)


def steps_legal(prompt: str, text: str) -> list[bool]:
    """For each step of a text, whether it and all before it are legal and true."""
    problem, parts = problem_of(prompt), split_steps(text)
    legal = 0 if problem is None else follow(problem, parts)[1]
    return [i < legal for i in range(len(parts))]


def last_line(prompt: str) -> str:
    """The problem of a prompt as it stands there, without what comes before it."""
    return prompt[prompt.rfind(EOS) + 1 :]


def last_attempt(prompt: str, text: str) -> str:
    """Of a text that holds several attempts, each behind the prompt's last line once more, the last."""
    line = last_line(prompt)
    at = text.rfind(line) if line else -1
    return text[at + len(line) :] if at >= 0 else text


def verify_last(prompt: str, text: str) -> bool:
    """verify, of the last attempt."""
    return verify(prompt, last_attempt(prompt, text))
