"""When a path has written what it was asked for: stop tokens, and stop strings across token
borders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .history import Segment

Until = None | int | str | Sequence[int] | Sequence[str]
_ends: dict[tuple[int, str], tuple[Any, npt.NDArray[np.bool_]]] = {}


def ending_tokens(tokenizer: Any, stop: str, vocab: int) -> npt.NDArray[np.bool_]:
    """[V]: the tokens whose text may hold the last character of `stop`."""
    known = _ends.get((id(tokenizer), stop))
    if known is not None and known[0] is tokenizer and known[1].size == vocab:
        return known[1]
    lead = lead_token(tokenizer)
    start = len(tokenizer.decode(lead))
    texts = tokenizer.batch_decode([[*lead, i] for i in range(min(vocab, len(tokenizer)))])
    # a token of incomplete bytes shows as the replacement character
    may = [stop[-1] in text[start:] or "\ufffd" in text for text in texts]
    ends = np.zeros(vocab, bool)
    ends[: len(may)] = may
    _ends[id(tokenizer), stop] = (tokenizer, ends)
    return ends


class Stops:
    """The stops of one decode call.

    A string is looked for in the text of the tokens this call decoded, and ends the path with the
    token that completes it. Only paths whose new token may complete one are looked at.
    """

    def __init__(self, until: Until, tokenizer: Any, vocab: int) -> None:
        items: list[Any] = [until] if isinstance(until, (int, str)) else list(until or ())
        self.strings = [item for item in items if isinstance(item, str)]
        tokens = [int(item) for item in items if not isinstance(item, str)]
        if "" in self.strings:
            raise ValueError("until: got an empty string, expected text that can be met")
        if any(not 0 <= token < vocab for token in tokens):
            raise ValueError(f"until: got {tokens}, expected token ids from 0 to {vocab - 1}")
        if self.strings and tokenizer is None:
            raise ValueError(f"until: got {self.strings}, but this engine has no tokenizer")
        self.tokenizer = tokenizer
        self.is_stop = np.zeros(vocab, bool)
        self.is_stop[tokens] = True
        self.any_token = bool(tokens)
        self.may_end = np.zeros(vocab, bool)
        for stop in self.strings:
            self.may_end |= ending_tokens(tokenizer, stop, vocab)
        self.reach = max((len(stop.encode()) for stop in self.strings), default=0)
        self.lead = lead_token(tokenizer) if self.strings else []

    def met(
        self,
        tokens: npt.NDArray[np.int32],
        segment: Segment,
        rows: npt.NDArray[np.int64],
        decoded: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        """Which of the paths at `rows`, each with a new token, are at a stop; decoded[i] tokens are
        new."""
        met: npt.NDArray[np.bool_] = self.is_stop[tokens]
        if self.strings:
            for i in np.flatnonzero(self.may_end[tokens] & ~met).tolist():
                count = int(segment.count[rows[i]])
                new = segment.tokens[
                    rows[i], max(count - int(decoded[i]), count - self.reach, 0) : count
                ]
                text = self.tokenizer.decode([*self.lead, *new.tolist()])
                start = len(self.tokenizer.decode(self.lead))
                met[i] = any(text.find(stop, start) >= 0 for stop in self.strings)
        return met


@lru_cache(maxsize=16)
def lead_token(tokenizer: Any) -> list[int]:
    """A token to decode others behind: a decoder may drop the space a text begins with."""
    ids = range(len(tokenizer))
    return next(([i] for i in ids if tokenizer.decode([i]).isalnum()), [])
