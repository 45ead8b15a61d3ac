"""Countdown: combine all numbers with + - * / into a target; generator, exact solver, exact verifier.

A problem is a multiset of positive integers and a target. A step takes two numbers away and puts one of
their sum, difference, product or quotient back; it is legal when the result is an integer of at least
zero. A problem is solved when one number is left, equal to the target. Nothing here runs a model, and
nothing evaluates text: what a model wrote is parsed character by character, with bounded numbers.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, combinations_with_replacement

MAX_DIGITS = 12  # 99**5 has ten; longer numbers in a model's text are refused before they are read
TEST_SHARE = 10  # one problem in ten belongs to the test split


@dataclass(frozen=True)
class Problem:
    """Numbers to be used once each, in the order of the prompt, and the target."""

    numbers: tuple[int, ...]
    target: int

    def __str__(self) -> str:
        return f"{','.join(map(str, self.numbers))}>{self.target}"

    @property
    def is_test(self) -> bool:
        """Whether the problem belongs to the test split: a hash of its sorted numbers and target, so
        that no order of the numbers is ever in both."""
        key = f"{','.join(map(str, sorted(self.numbers)))}>{self.target}"
        return zlib.crc32(key.encode()) % TEST_SHARE == 0


@dataclass(frozen=True)
class Step:
    """One claim, `left op right = result`; text may hold false ones."""

    left: int
    op: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left}{self.op}{self.right}={self.result}"


def apply(left: int, op: str, right: int) -> int | None:
    """The result of a legal operation; None where it is negative, no integer, or a division by zero."""
    if op == "+":
        return left + right
    if op == "*":
        return left * right
    if op == "-":
        return left - right if left >= right else None
    if op == "/":
        return left // right if right and left % right == 0 else None
    return None


def moves(numbers: Sequence[int]) -> list[tuple[Step, tuple[int, ...]]]:
    """All legal steps and the numbers after each: the result first, the others in their order.

    The larger number stands on the left; equal pairs at different places are listed each. Of 0 and a
    larger number only the quotient 0/b is left out, since it equals the product.
    """
    found = []
    for i, j in combinations(range(len(numbers)), 2):
        rest = tuple(numbers[k] for k in range(len(numbers)) if k != i and k != j)
        high, low = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
        for op in "+-*/":
            result = apply(high, op, low)
            if result is not None:
                found.append((Step(high, op, low, result), (result, *rest)))
    return found


def is_legal(numbers: Sequence[int], step: Step) -> bool:
    """Whether the step uses two numbers that are there and its claim is true."""
    left = list(numbers)
    for number in (step.left, step.right):
        if number not in left:
            return False
        left.remove(number)
    return apply(step.left, step.op, step.right) == step.result


def after(numbers: Sequence[int], step: Step) -> tuple[int, ...]:
    """The numbers after a legal step: the result first, the others in their order."""
    rest = list(numbers)
    rest.remove(step.left)
    rest.remove(step.right)
    return (step.result, *rest)


def can_reach(numbers: Iterable[int], target: int) -> bool:
    """Exactly whether the target can be made from all these numbers. Memoised."""
    return _can_reach(tuple(sorted(numbers)), target)


@lru_cache(maxsize=1 << 18)
def _can_reach(numbers: tuple[int, ...], target: int) -> bool:
    if len(numbers) == 1:
        return numbers[0] == target
    if len(numbers) == 2:
        low, high = numbers
        return (
            low + high == target
            or low * high == target
            or high - low == target
            or (low > 0 and low * target == high)
        )
    return any(_can_reach(tuple(sorted(rest)), target) for _, rest in moves(numbers))


def solve(problem: Problem, draw: random.Random | None = None) -> list[Step] | None:
    """A solution, one step less than there are numbers, or None when there is none: the first in the order
    of `moves`, or with `draw` a random one."""
    numbers, steps = problem.numbers, []
    if not can_reach(numbers, problem.target):
        return None
    while len(numbers) > 1:
        options = moves(numbers)
        if draw is not None:
            draw.shuffle(options)
        step, numbers = next(m for m in options if can_reach(m[1], problem.target))
        steps.append(step)
    return steps


def count_solutions(numbers: Sequence[int], target: int) -> int:
    """How many sequences of moves end at the target: the difficulty of a problem (fewer is harder)."""
    if len(numbers) == 1:
        return int(numbers[0] == target)
    return sum(count_solutions(rest, target) for _, rest in moves(numbers))


def parse_number(text: str) -> int | None:
    """A non-negative decimal number as str(int) writes it, of at most MAX_DIGITS digits; else None."""
    if not 0 < len(text) <= MAX_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    return None if text[0] == "0" and len(text) > 1 else int(text)


def parse_step(text: str) -> Step | None:
    """`45-23=22` as a Step (its claim is not checked); None for anything else."""
    body, equals, claim = text.partition("=")
    for op in "+-*/":
        left, found, right = body.partition(op)
        if found:
            values = parse_number(left), parse_number(right), parse_number(claim)
            if equals and None not in values:
                return Step(values[0], op, values[1], values[2])  # type: ignore[arg-type]
            return None
    return None


def generate(
    count: int,
    size: int,
    *,
    seed: int,
    test: bool,
    low: int = 1,
    high: int = 99,
    targets: tuple[int, int] = (10, 100),
) -> list[Problem]:
    """`count` distinct solvable problems of `size` numbers from one split.

    Numbers and target are drawn uniformly and kept only if the exact solver finds a solution, never
    built forward from random operations, which would favour easy problems. The same arguments give the
    same problems on every machine.
    """
    draw = random.Random(f"countdown {seed} {size} {test}")  # noqa: S311
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        numbers = tuple(draw.randint(low, high) for _ in range(size))
        problem = Problem(numbers, draw.randint(*targets))
        if problem.is_test == test and can_reach(numbers, problem.target):
            problems[problem] = None
    return list(problems)


def test_set(size: int, count: int = 200) -> list[Problem]:
    """The fixed test problems of `size` numbers that reports use; a smaller count is a prefix."""
    return generate(count, size, seed=2026, test=True)


def game_of_24() -> list[Problem]:
    """The multisets of four numbers of 1-13 that make 24 in exact integer steps, in sorted order."""
    hands = combinations_with_replacement(range(1, 14), 4)
    return [Problem(hand, 24) for hand in hands if can_reach(hand, 24)]


def can_reach_with_fractions(numbers: Sequence[Fraction | int], target: int) -> bool:
    """can_reach under the rules of the Game of 24, where steps may be fractions (8/(3-8/3) = 24)."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, j in combinations(range(len(numbers)), 2):
        rest = [numbers[k] for k in range(len(numbers)) if k != i and k != j]
        a, b = numbers[i], numbers[j]
        results = {a + b, a - b, b - a, a * b}
        results |= {Fraction(x) / y for x, y in ((a, b), (b, a)) if y}
        if any(can_reach_with_fractions([result, *rest], target) for result in results):
            return True
    return False


def random_rollouts(problem: Problem, *, seed: int) -> Iterator[bool]:
    """The baseline that thinks nothing: endless tries, each a uniform pair, then a uniform legal
    operation on it, until one number is left; whether each try hit the target."""
    draw = random.Random(f"rollouts {seed} {problem}")  # noqa: S311
    while True:
        numbers = list(problem.numbers)
        while len(numbers) > 1:
            i, j = draw.sample(range(len(numbers)), 2)
            high, low = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
            results = [r for op in "+-*/" if (r := apply(high, op, low)) is not None]
            numbers = [n for k, n in enumerate(numbers) if k != i and k != j]
            numbers.append(draw.choice(results))
        yield numbers[0] == problem.target
