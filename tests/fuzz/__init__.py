"""Targets for a coverage-guided fuzzer: each module has `target(data)`, which takes any bytes, and `SEEDS`.

`python -m tests.fuzz.run` runs them under atheris; tests/test_fuzz.py runs the seeds, what was found
(finds/<target>/) and a few random bytes on every push. A target fails with any exception but the one that
says that its input is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

TARGETS = (
    "bitmask",
    "command_line",
    "countdown_text",
    "page_table",
    "reward_head",
    "run_file",
    "tree_plan",
)


class Reader:
    """Small choices and numbers read off bytes; zeros when these have ended."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at].ljust(count, b"\0")

    def below(self, n: int) -> int:
        """0 to n - 1."""
        return int(self.take(1)[0]) % n

    def integer(self) -> int:
        """A small number mostly; else one at an edge, or any of 64 bits."""
        kind = self.below(16)
        if kind == 15:
            return int(struct.unpack("<q", self.take(8))[0])
        if kind == 14:
            edges = (-(2**63), -(2**31), -2, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1)
            return edges[self.below(len(edges))]
        return self.below(20) - 1

    def integers(self, most: int) -> list[int]:
        return [self.integer() for _ in range(self.below(most + 1))]

    def left(self) -> bytes:
        return self.data[self.at :]


def patched(whole: bytes, reader: Reader) -> bytes:
    """`whole` with what a reader says replaced, put in or cut out: near to what is valid."""
    for _ in range(reader.below(6)):
        at = int.from_bytes(reader.take(2), "little") % (len(whole) + 1)
        new, cut = reader.take(reader.below(9)), reader.below(9)
        whole = whole[:at] + new + whole[at + cut :]
    return whole


def seeds(count: int) -> Iterator[bytes]:
    """Bytes that are the same in every run."""
    import random

    draw = random.Random(0)
    for _ in range(count):
        yield draw.randbytes(draw.randrange(1, 200))
