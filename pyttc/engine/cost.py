"""What a run cost, and what it would have cost had its paths shared nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .cache import Ints


@dataclass
class Work:
    """One column of the ledger.

    Attributes:
        prefilled: prompt and forced tokens that went through the model.
        decoded: tokens sampled.
        flops: of the matrix products and of attention, scorers included; 2 for a multiply-add.
        kv_bytes_held: the most bytes of keys and values held at one time.
        kv_bytes_read: bytes of keys and values read by attention, a node once a step.
    """

    prefilled: int = 0
    decoded: int = 0
    flops: float = 0.0
    kv_bytes_held: int = 0
    kv_bytes_read: int = 0


@dataclass(frozen=True)
class Prices:
    """FLOPs and bytes of one token of a model.

    Attributes:
        body, head: FLOPs of the weights for one token, and for one row of logits.
        attention: FLOPs of attention for one token and one token attended to, all layers.
        kv_bytes: bytes of keys and values of a token, all layers.
    """

    body: float
    head: float
    attention: float
    kv_bytes: int

    def pass_flops(self, before: Ints, counts: Ints) -> float:
        """Of a pass over counts[i] tokens, each of which attends to all before it and itself."""
        attended = float((counts * before + counts * (counts + 1) / 2).sum())
        return float(counts.sum()) * self.body + attended * self.attention


@dataclass
class Cost:
    """The cost of a prefill and of everything that was made of it: forks, decoding, scoring.

    Attributes:
        ran: what ran.
        unshared: the same paths, each with a prompt, a prefix and keys of its own.
        seconds: wall time inside the engine.
    """

    ran: Work
    unshared: Work
    seconds: float = 0.0

    def prompted(self, tokens: int, unshared: int) -> None:
        self.ran.prefilled += tokens
        self.unshared.prefilled += unshared

    def passed(self, prices: Prices, before: Ints, counts: Ints, under: int) -> None:
        """A pass over counts[i] tokens behind before[i] others; `under` tokens held their keys."""
        flops = prices.pass_flops(before, counts)
        self.ran.flops += flops
        self.unshared.flops += flops
        self.ran.kv_bytes_read += under * prices.kv_bytes
        self.unshared.kv_bytes_read += int((before + counts).sum()) * prices.kv_bytes

    def sampled(self, prices: Prices, rows: int, distinct: int) -> None:
        """A token for each of `rows`, from `distinct` rows of logits."""
        for work, heads in ((self.ran, distinct), (self.unshared, rows)):
            work.decoded += rows
            work.flops += heads * prices.head

    def forked(self, prices: Prices, lengths: Ints) -> None:
        """What copies of paths of these lengths would have prefilled."""
        self.unshared.prefilled += int(lengths.sum())
        self.unshared.flops += prices.pass_flops(np.zeros_like(lengths), lengths)

    def held(self, prices: Prices, held: int, lengths: Ints) -> None:
        """Bytes held now, and paths of these lengths that hold them."""
        unshared = int(lengths.sum()) * prices.kv_bytes
        self.ran.kv_bytes_held = max(self.ran.kv_bytes_held, held)
        self.unshared.kv_bytes_held = max(self.unshared.kv_bytes_held, unshared)

    def __str__(self) -> str:
        lines = [f"{'':16}{'ran':>14}{'unshared':>14}"]
        for field in fields(Work):
            a, b = getattr(self.ran, field.name), getattr(self.unshared, field.name)
            lines.append(f"{field.name:16}{a:>14.4g}{b:>14.4g}")
        return "\n".join([*lines, f"{'seconds':16}{self.seconds:>14.4g}"])
