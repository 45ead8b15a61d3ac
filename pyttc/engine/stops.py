"""When a path has written what it was asked for: stop tokens, and stop strings across token
borders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .history import Segment, tail

Until = None | int | str | Sequence[int] | Sequence[str]
_ends: dict[tuple[int, str], tuple[Any, npt.NDArray[np.bool_]]] = {}


def ending_tokens(tokenizer: Any, stop: str, vocab: int) -> npt.NDArray[np.bool_]:
    """[2, V]: the tokens whose text may hold the last character of `stop`, and those whose text holds
    all of it."""
    known = _ends.get((id(tokenizer), stop))
    if known is not None and known[0] is tokenizer and known[1].shape[1] == vocab:
        return known[1]
    lead = lead_token(tokenizer)
    start = len(tokenizer.decode(lead))
    texts = tokenizer.batch_decode([[*lead, i] for i in range(min(vocab, len(tokenizer)))])
    ends = np.zeros((2, vocab), bool)
    # a token of incomplete bytes, which show as the replacement character, may complete a letter of several
    part = "\ufffd" if not stop[-1].isascii() else stop[-1]
    ends[0, : len(texts)] = [stop[-1] in text[start:] or part in text[start:] for text in texts]
    ends[1, : len(texts)] = [stop in text[start:] for text in texts]
    _ends[id(tokenizer), stop] = (tokenizer, ends)
    return ends


class Stops:
    """The stops of one decode call.

    A string is looked for in the text of the tokens this call decoded, and ends the path with the
    token that completes it. A token that holds a whole stop ends its path at sight; the text of a path
    is only looked at where its new token may complete a stop that began before.

    Raises:
        TypeError, ValueError: which name the argument, `name`.
    """

    def __init__(self, until: Until, tokenizer: Any, vocab: int, name: str = "until") -> None:
        if isinstance(until, (int, np.integer, str)):
            until = (until,)  # type: ignore[assignment]
        if isinstance(until, (bytes, bytearray)) or not isinstance(until, Iterable | None):
            raise TypeError(f"{name}: got {until!r}, expected texts or token ids")
        items: list[Any] = [] if until is None else list(until)
        self.strings = [item for item in items if isinstance(item, str)]
        tokens = [item for item in items if not isinstance(item, str)]
        if any(isinstance(t, bool) or not isinstance(t, (int, np.integer)) for t in tokens):
            raise TypeError(f"{name}: got {tokens}, expected texts or token ids")
        if "" in self.strings:
            raise ValueError(f"{name}: got an empty string, expected text that can be met")
        if any(not 0 <= token < vocab for token in tokens):
            raise ValueError(f"{name}: got {tokens}, expected token ids from 0 to {vocab - 1}")
        if self.strings and tokenizer is None:
            raise ValueError(f"{name}: got {self.strings}, but this engine has no tokenizer")
        self.tokenizer = tokenizer
        self.is_stop = np.zeros(vocab, bool)
        self.is_stop[tokens] = True
        self.may_end = np.zeros(vocab, bool)
        for stop in self.strings:
            may_end, whole = ending_tokens(tokenizer, stop, vocab)
            self.may_end |= may_end
            self.is_stop |= whole
        self.reach = max((len(stop.encode()) for stop in self.strings), default=0)
        self.lead = lead_token(tokenizer) if self.strings else []

    def met(
        self,
        tokens: npt.NDArray[np.int32],
        segment: Segment,
        rows: npt.NDArray[np.int64],
        before: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        """Which of the paths at `rows` are at a stop with one more token each, where one may have begun in
        the before[i] tokens before it."""
        met: npt.NDArray[np.bool_] = self.is_stop[tokens]
        if self.strings:
            for i in np.flatnonzero(self.may_end[tokens] & ~met).tolist():
                size = min(int(before[i]), self.reach - 1)
                known = [*self.lead, *tail(segment, rows[i : i + 1], np.array([size])).tolist()]
                text = self.tokenizer.decode([*known, int(tokens[i])])
                # a text that was forced may hold a stop: the one that counts ends in the new token
                start = len(self.tokenizer.decode(self.lead))
                ends = [text.rfind(s, start) + len(s) for s in self.strings if s in text[start:]]
                met[i] = max(ends, default=0) > len(self.tokenizer.decode(known).rstrip("\ufffd"))
        return met


@lru_cache(maxsize=16)
def lead_token(tokenizer: Any) -> list[int]:
    """A token to decode others behind: a decoder may drop the space a text begins with."""
    ids = range(len(tokenizer))
    return next(([i] for i in ids if tokenizer.decode([i]).isalnum()), [])
