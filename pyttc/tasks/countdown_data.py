"""Training text for Countdown with the exact distribution over good next characters.

Problems are enumerated in bulk (NumPy): every tree of moves of every draw of numbers at once. Most lines
are one solution, drawn uniformly among all sequences of moves that end at the target. Wherever the model
writes, it is trained not on the one character of that solution but on the distribution over the next
character of all solutions that share the text so far: the same mean, far less noise. Some lines go astray,
so that steps after which nothing can be saved are seen too; each step carries that label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .countdown import Problem, apply
from .countdown_text import DELIMITER, EOS, VOCABULARY, calculator, prompt

OPS = "+*-/"
IDS = {symbol: i for i, symbol in enumerate(VOCABULARY)}


@dataclass
class Examples:
    """Tokenized lines, one after the other.

    tokens: uint8, all characters. starts: where each line begins, and the end of the last.
    written: the places of the characters to be learnt, in order; targets: uint8 [written, vocabulary],
    255 times the distribution of each. labels: [steps, 2], the place of each step's delimiter and whether
    the target can still be reached there.
    """

    tokens: np.ndarray
    starts: np.ndarray
    written: np.ndarray
    targets: np.ndarray
    labels: np.ndarray


def expand(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All moves from [..., k] numbers: the numbers after each, [..., k*(k-1)/2*4, k-1], result first,
    and whether each is legal. Moves are ordered by pair (i, j), then by OPS."""
    k = values.shape[-1]
    after, legal = [], []
    for i in range(k):
        for j in range(i + 1, k):
            rest = np.delete(values, (i, j), axis=-1)
            high = np.maximum(values[..., i], values[..., j])
            low = np.minimum(values[..., i], values[..., j])
            safe = np.maximum(low, 1)
            quotient = high // safe
            divides = (low > 0) & (quotient * safe == high)
            for result in (high + low, high * low, high - low, quotient):
                after.append(np.concatenate([result[..., None], rest], axis=-1))
                legal.append(divides if result is quotient else np.ones_like(divides))
    return np.stack(after, axis=-2), np.stack(legal, axis=-1)


def leaves(numbers: np.ndarray) -> np.ndarray:
    """The last number after every sequence of moves: [B, moves_1, ..., moves_{k-1}], -1 where illegal."""
    values, ok = numbers, np.ones(len(numbers), bool)
    while values.shape[-1] > 1:
        values, legal = expand(values)
        ok = ok[..., None] & legal
    return np.where(ok, values[..., 0], -1)


def solutions(
    rng: np.random.Generator, size: int, batch: int, keep: float
) -> Iterator[tuple[Problem, np.ndarray]]:
    """Solvable problems of the training split and, for each, which sequences of moves solve it.

    Each of the solvable (numbers, target) pairs of a uniform draw of numbers is kept with probability
    `keep`: the distribution of uniform numbers and targets under the condition that they are solvable.
    """
    while True:
        numbers = rng.integers(1, 100, (batch, size))
        ends = leaves(numbers)
        for row, end in zip(numbers, ends, strict=True):
            found = np.unique(end)
            found = found[(found >= 10) & (found <= 100)]
            for target in found[rng.random(len(found)) < keep]:
                problem = Problem(tuple(row.tolist()), int(target))
                if not problem.is_test:
                    yield problem, end == target


def move_text(numbers: tuple[int, ...], index: int) -> tuple[str, tuple[int, ...] | None]:
    """The text `45-23=` of move `index` in expand's order, and the numbers after it, if it is legal."""
    k = len(numbers)
    pairs = [(i, j) for i in range(k) for j in range(i + 1, k)]
    (i, j), op = pairs[index // 4], OPS[index % 4]
    high, low = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
    result = apply(high, op, low)
    rest = tuple(numbers[place] for place in range(k) if place not in (i, j))
    return f"{high}{op}{low}=", None if result is None else (result, *rest)


class Line:
    """One example while it is written: text, distributions of what the model writes, labels of steps."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.shares: list[tuple[int, dict[str, float]]] = []
        self.labels: list[tuple[int, bool]] = []

    def write(self, symbols: str) -> None:
        """Characters the model writes and that could be no others."""
        self.shares += [(len(self.text) + i, {s: 1.0}) for i, s in enumerate(symbols)]
        self.text += symbols

    def choose(self, move: str, choices: dict[str, float]) -> None:
        """A move, trained on the weights of `choices` while it agrees with one of them."""
        for i in range(len(move)):
            share: dict[str, float] = {}
            for other, weight in choices.items():
                if other[:i] == move[:i]:
                    share[other[i]] = share.get(other[i], 0.0) + weight
            if share:
                self.shares.append((len(self.text) + i, share))
        self.text += move


def example(
    problem: Problem, solves: np.ndarray, rng: np.random.Generator, *, direct: bool, astray: float
) -> Line:
    """One line. Each move is one of a uniformly drawn solution or, with probability `astray`, any legal
    one; every step is labelled with whether the target can still be reached after it."""
    line = Line(prompt(problem))
    numbers, below = problem.numbers, solves
    while len(numbers) > 1:
        counts = below.reshape(len(below), -1).sum(axis=1)
        good: dict[str, float] = {}
        for index in np.flatnonzero(counts):
            move = move_text(numbers, index)[0]
            good[move] = good.get(move, 0.0) + float(counts[index])
        rest = None
        while rest is None:
            if good and rng.random() >= astray:
                index = int(rng.choice(len(counts), p=counts / counts.sum()))
            else:
                index = int(rng.integers(len(counts)))
            move, rest = move_text(numbers, index)
        line.choose(move, good)
        if direct:
            line.write(f"{rest[0]}{DELIMITER}")
        else:
            line.text += calculator(rest[0], rest)
        numbers, below = rest, below[index]
        line.labels.append((len(line.text) - 1, bool(below.any())))
    line.write(EOS)
    return line


def build(count: int, *, seed: int, sizes: dict[int, float], direct: float = 0.2) -> Examples:
    """`count` examples; `sizes` maps how many numbers to its share, `direct` is that format's share.
    A third of the lines go astray at most of their moves."""
    rng = np.random.default_rng(seed)
    # a tree of five numbers has 46,080 leaves: small batches, and more problems of each
    sources = {
        size: solutions(rng, size, batch={3: 400, 4: 200, 5: 8}[size], keep=0.15) for size in sizes
    }
    order = rng.choice(list(sizes), size=count, p=list(sizes.values()))
    tokens: list[int] = []
    starts, written, targets, labels = [0], [], [], []
    for size in order:
        problem, solves = next(sources[size])
        astray = 0.6 if rng.random() < 0.35 else 0.0
        line = example(problem, solves, rng, direct=bool(rng.random() < direct), astray=astray)
        for place, share in line.shares:
            written.append(len(tokens) + place)
            row = np.zeros(len(VOCABULARY))
            row[[IDS[symbol] for symbol in share]] = list(share.values())
            targets.append(np.rint(row * (255 / row.sum())).astype(np.uint8))
        labels += [(len(tokens) + place, label) for place, label in line.labels]
        tokens += [IDS[symbol] for symbol in line.text]
        starts.append(len(tokens))
    return Examples(
        np.array(tokens, np.uint8),
        np.array(starts, np.int64),
        np.array(written, np.int64),
        np.stack(targets),
        np.array(labels, np.int64),
    )
