"""What every path wrote: tokens with their log-probabilities, entropy and confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .cache import Ints, ragged

FIELDS = ("logprobs", "processed_logprobs", "entropy", "confidence")


class Segment:
    """A block of tokens, one row a path, on top of rows of an older segment.

    A fork starts a new segment whose rows point at the rows they continue, so that nothing is
    copied and what dropped paths wrote stays readable from the paths that came of the same rows.
    """

    def __init__(self, below: Segment | None, rows_below: Ints, room: int = 16) -> None:
        self.below, self.rows_below = below, rows_below
        rows = rows_below.size
        self.count = np.zeros(rows, np.int64)
        self.tokens = np.zeros((rows, room), np.int32)
        self.values = {name: np.full((rows, room), np.nan, np.float32) for name in FIELDS}

    def reserve(self, rows: Ints, counts: Ints) -> None:
        """Makes room for counts[i] more tokens in rows[i]."""
        needed = int((self.count[rows] + counts).max(initial=0))
        room = self.tokens.shape[1]
        if needed > room:
            more = ((0, 0), (0, max(needed, 2 * room) - room))
            tokens = np.pad(self.tokens, more)
            self.values = {
                name: np.pad(value, more, constant_values=np.nan)
                for name, value in self.values.items()
            }
            self.tokens = tokens

    def push(
        self, rows: Ints, tokens: npt.NDArray[np.int32], **values: npt.NDArray[np.float32]
    ) -> None:
        """Sampled tokens [steps, rows], one a step for each of `rows`. There must be room."""
        steps = len(tokens)
        at = self.count[rows] + np.arange(steps)[:, None]
        self.tokens[rows, at] = tokens
        for name, value in values.items():
            self.values[name][rows, at] = value
        self.count[rows] += steps

    def extend(self, rows: Ints, counts: Ints, tokens: npt.NDArray[np.int32]) -> None:
        """Forced tokens, counts[i] for rows[i], one after the other: their values stay NaN. There must be
        room."""
        each, columns = ragged(counts)
        self.tokens[rows[each], self.count[rows[each]] + columns] = tokens
        self.count[rows] += counts


def join(parts: Sequence[tuple[Segment, Ints]]) -> Segment:
    """One block of all that the paths at `rows` of each (segment, rows) wrote, on top of nothing: a copy."""
    joined = Segment(None, np.arange(sum(rows.size for _, rows in parts)))
    for name in ("tokens", *FIELDS):
        written = [row for segment, rows in parts for row in read(segment, rows, name)]
        counts = np.array([row.size for row in written], np.int64)
        joined.reserve(joined.rows_below, counts)
        field = joined.tokens if name == "tokens" else joined.values[name]
        for into, row in zip(field, written, strict=True):
            into[: row.size] = row
    joined.count = counts
    return joined


def read(segment: Segment, rows: Ints, name: str) -> list[npt.NDArray[np.generic]]:
    """All that the paths at `rows` wrote, oldest first: "tokens" or one of FIELDS."""
    parts: list[list[npt.NDArray[np.generic]]] = [[] for _ in range(rows.size)]
    at: Segment | None = segment
    while at is not None:
        field = at.tokens if name == "tokens" else at.values[name]
        for part, row, count in zip(parts, rows.tolist(), at.count[rows].tolist(), strict=True):
            if count:
                part.append(field[row, :count])
        rows, at = at.rows_below[rows], at.below
    empty = np.zeros(0, np.int32 if name == "tokens" else np.float32)
    return [np.concatenate(part[::-1]) if part else empty for part in parts]


def tail(segment: Segment, rows: Ints, counts: Ints) -> npt.NDArray[np.int32]:
    """The last counts[i] tokens of each path, one path after the other."""
    newest = segment.count[rows]
    if (counts == 1).all() and newest.all():  # a step of decoding
        return segment.tokens[rows, newest - 1]
    ends = np.cumsum(counts)
    out = np.empty(int(ends[-1]) if ends.size else 0, np.int32)
    left = counts.copy()
    at: Segment | None = segment
    while at is not None and left.any():
        taken = np.minimum(at.count[rows], left)
        each, columns = ragged(taken)
        here = at.count[rows[each]] - taken[each] + columns
        out[(ends - counts + left - taken)[each] + columns] = at.tokens[rows[each], here]
        left = left - taken
        rows, at = at.rows_below[rows], at.below
    return out
