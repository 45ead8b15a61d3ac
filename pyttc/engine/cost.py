"""What a run cost, and what it would have cost had its paths shared nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from .cache import Ints, pages_for


@dataclass
class Work:
    """One column of the ledger.

    Attributes:
        prefilled: prompt and forced tokens that went through the model.
        decoded: tokens sampled.
        flops: of the matrix products and of attention, scorers included; 2 for a multiply-add.
        seconds: wall time inside the engine, scorers included; see `Cost` for the unshared column.
        kv_bytes_held: the most bytes of keys and values the engine held at one time, in whole pages.
        kv_bytes_read: bytes of keys and values read by attention, a node once a step.
    """

    prefilled: int = 0
    decoded: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    kv_bytes_held: int = 0
    kv_bytes_read: int = 0


@dataclass(frozen=True)
class Prices:
    """FLOPs and bytes of one token of a model.

    Attributes:
        body, head: FLOPs of the weights for one token, and for one row of logits.
        attention: FLOPs of attention for one token and one token attended to, all layers.
        kv_bytes: bytes of keys and values of a token, all layers.
        weight_bytes: bytes of the weights, which every pass reads.
        page_size: tokens a page of keys and values.
    """

    body: float
    head: float
    attention: float
    kv_bytes: int
    weight_bytes: int
    page_size: int

    def pass_flops(self, before: Ints, counts: Ints) -> float:
        """Of a pass over counts[i] tokens, each of which attends to all before it and itself."""
        attended = float((counts * before + counts * (counts + 1) / 2).sum())
        return float(counts.sum()) * self.body + attended * self.attention


@dataclass
class Rates:
    """The most FLOPs, and bytes of weights, keys and values, that an engine got through in a second
    of any prefill or decoding step so far."""

    flops: float = 0.0
    bytes: float = 0.0


@dataclass
class Cost:
    """The cost of a prefill and of everything that was made of it: forks, decoding, scoring.

    `unshared` is counted, not run: the same tokens, each path with a prompt, a prefix and keys of
    its own. Its seconds are an estimate, and a cautious one: those that ran, plus the further FLOPs
    and the further bytes read, each at the best rate this engine has reached so far::

        ran.seconds + (unshared.flops - ran.flops) / rates.flops
                    + (unshared.kv_bytes_read - ran.kv_bytes_read) / rates.bytes

    Engines that expand the prefix measure slower than that: they also copy it, and wait for it.

    Attributes:
        ran: what ran, measured.
        unshared: the same without any sharing, computed.
    """

    prices: Prices = field(repr=False)
    rates: Rates = field(repr=False)
    ran: Work = field(default_factory=Work)
    unshared: Work = field(default_factory=Work)
    _passes: int = field(default=0, repr=False)
    _running: bool = field(default=False, repr=False)
    _timed: tuple[float, float] = field(default=(0.0, 0.0), repr=False)  # FLOPs and bytes

    @property
    def seconds(self) -> float:
        """Wall time inside the engine."""
        return self.ran.seconds

    def prompted(self, tokens: int, unshared: int) -> None:
        self.ran.prefilled += tokens
        self.unshared.prefilled += unshared

    def passed(self, before: Ints, counts: Ints, under: int) -> None:
        """A pass over counts[i] tokens behind before[i] others; `under` tokens held their keys."""
        flops = self.prices.pass_flops(before, counts)
        self._passes += 1
        self.ran.flops += flops
        self.unshared.flops += flops
        self.ran.kv_bytes_read += under * self.prices.kv_bytes
        self.unshared.kv_bytes_read += int((before + counts).sum()) * self.prices.kv_bytes

    def matched(self, tokens: Ints) -> None:
        """Tokens of prompts whose keys and values earlier prompts had left."""
        self.unshared.flops += self.prices.pass_flops(tokens * 0, tokens)

    def sampled(self, rows: int, distinct: int) -> None:
        """A token for each of `rows`, from `distinct` rows of logits."""
        for work, heads in ((self.ran, distinct), (self.unshared, rows)):
            work.decoded += rows
            work.flops += heads * self.prices.head

    def forked(self, lengths: Ints, copies: Ints) -> None:
        """What copies[i] further paths of length lengths[i] would have prefilled."""
        each = copies * lengths
        tokens, attended = int(each.sum()), float((each * (lengths + 1)).sum()) / 2
        self.unshared.prefilled += tokens
        self.unshared.flops += tokens * self.prices.body + attended * self.prices.attention
        self._estimate()

    def held(self, held: int, lengths: Ints) -> None:
        """Bytes held now, and paths of these lengths that hold them; alone, each had pages of its own."""
        page_size = self.prices.page_size
        unshared = int(pages_for(lengths, page_size).sum()) * page_size * self.prices.kv_bytes
        self.ran.kv_bytes_held = max(self.ran.kv_bytes_held, held)
        self.unshared.kv_bytes_held = max(self.unshared.kv_bytes_held, unshared)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Charges the wall time of what is done inside, once where such blocks are nested."""
        if self._running:
            yield
            return
        self._running, start = True, time.perf_counter()
        try:
            yield
        finally:
            self._running = False
            self.took(time.perf_counter() - start)

    def took(self, seconds: float) -> None:
        """The wall time of what was counted since the last call."""
        self.ran.seconds += seconds
        done = self.ran.flops, self.ran.kv_bytes_read + self._passes * self.prices.weight_bytes
        flops, moved = done[0] - self._timed[0], done[1] - self._timed[1]
        self._timed = done
        if seconds > 0:
            self.rates.flops = max(self.rates.flops, flops / seconds)
            self.rates.bytes = max(self.rates.bytes, moved / seconds)
        self._estimate()

    def counted(self) -> None:
        """What was counted since the last call took no time of its own: it was not run here."""
        passes = self._passes * self.prices.weight_bytes
        self._timed = self.ran.flops, self.ran.kv_bytes_read + passes

    def _estimate(self) -> None:
        ran, alone, rates = self.ran, self.unshared, self.rates
        alone.seconds = ran.seconds
        if rates.flops:
            alone.seconds += (alone.flops - ran.flops) / rates.flops
        if rates.bytes:
            alone.seconds += (alone.kv_bytes_read - ran.kv_bytes_read) / rates.bytes

    def __str__(self) -> str:
        lines = [f"{'':16}{'ran':>14}{'unshared':>14}"]
        for each in fields(Work):
            a, b = getattr(self.ran, each.name), getattr(self.unshared, each.name)
            lines.append(f"{each.name:16}{a:>14.4g}{b:>14.4g}")
        return "\n".join(lines)
