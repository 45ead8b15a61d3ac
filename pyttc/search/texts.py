"""Many texts at once, to tokens and back: equal ones once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine import Paths, history
from ..engine.cache import Ints


def written(paths: Paths, rows: Ints) -> list[str]:
    """What the paths at `rows` wrote."""
    tokens = history.read(paths.segment, paths.rows[rows], "tokens")
    return decoded(paths.engine.tokenizer, [one.tolist() for one in tokens])


def decoded(tokenizer: Any, ids: list[list[int]]) -> list[str]:
    """The text of each list of tokens; equal ones are decoded once."""
    distinct = list(dict.fromkeys(map(tuple, ids)))
    if not distinct:
        return []
    texts = tokenizer.batch_decode(distinct, skip_special_tokens=True)
    known = dict(zip(distinct, texts, strict=True))
    return [known[tuple(one)] for one in ids]


def encoded(tokenizer: Any, texts: Sequence[str | None]) -> list[list[int]]:
    """The tokens of each text; equal ones are encoded once."""
    distinct = list(dict.fromkeys(text for text in texts if text))
    if not distinct:
        return [[] for _ in texts]
    ids = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    known = dict(zip(distinct, ids, strict=True))
    return [known[text] if text else [] for text in texts]
