"""What paths are and what they wrote: arrays over paths, and how they are read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from . import history
from .cache import Ints
from .cost import Cost
from .history import Segment
from .identity import prompt_word, sample_keys
from .ownership import NotCopied

if TYPE_CHECKING:
    from typing_extensions import Self

    from .engine import Engine

# why a path stopped in its last decode call; "" while it has not
ENDS = ("", "eos", "until", "length", "context", "invalid", "stopped")
ARRAYS = ("prompt", "lengths", "path_ids", "parents", "depth", "seeds", "ends", "rows")
DONE = np.isin(np.arange(len(ENDS)), (1, 4, 5))  # those after which a path cannot go on
State = TypeVar("State", bound="PathState")


class PathState(NotCopied):
    """The state of N paths and what reads it, without the verbs; see `Paths`."""

    instead = (
        "they hold pages of their engine's cache. fork() or select() gives more of them; .tokens, "
        ".logprobs and .text() can be copied"
    )

    def __init__(
        self,
        engine: Engine,
        leaves: Ints,
        prompts: list[npt.NDArray[np.int32]],
        hidden: torch.Tensor,
        seed: int,
        cost: Cost,
    ) -> None:
        n = leaves.size
        self.engine, self.leaves, self.prompts, self.cost = engine, leaves, prompts, cost
        self.words = np.array([prompt_word(ids) for ids in prompts], np.uint64)
        self.prompt = np.arange(n)
        self.lengths = np.array([ids.size for ids in prompts], np.int64)
        self.path_ids, self.parents = np.zeros(n, np.int64), np.full(n, -1)
        self.seeds = np.full(n, seed, np.int64)
        self.ends, self.depth = np.zeros(n, np.int8), np.zeros(n, np.int64)
        self.segment, self.rows, self._own = Segment(None, np.arange(n)), np.arange(n), True
        self._hidden, self._hidden_row = hidden, np.arange(n)
        self.hollow = False  # whether tokens were only counted as run, see `replay`

    def __len__(self) -> int:
        return int(self.leaves.size)

    def __repr__(self) -> str:
        return (
            f"Paths({len(self)} of {np.unique(self.prompt).size} prompts, {self.done.sum()} done)"
        )

    def __del__(self) -> None:
        # at any moment, in any thread, maybe amid a verb: what it leaves is released by a later verb
        with contextlib.suppress(AttributeError):
            self.engine._dropped.append(self.leaves)

    @property
    def lock(self) -> threading.RLock:
        """The engine's: the verbs of all its paths run one at a time."""
        return self.engine.lock

    # --- what they wrote

    @property
    def tokens(self) -> torch.Tensor:
        """int64 [N, T]: what each path wrote after its prompt, appended tokens too; -1 past its
        end."""
        return self._padded("tokens", -1).long()

    @property
    def logprobs(self) -> torch.Tensor:
        """float32 [N, T]: log-probability of each token, at the temperature it was drawn at but
        before top_k, top_p, min_p and mask; NaN for appended tokens and past the end."""
        return self._padded("logprobs", torch.nan)

    @property
    def processed_logprobs(self) -> torch.Tensor:
        """float32 [N, T]: log-probability of each token in what it was drawn from, after the filters
        and renormalised; NaN as above."""
        return self._padded("processed_logprobs", torch.nan)

    @property
    def entropy(self) -> torch.Tensor:
        """float32 [N, T]: entropy in nats of the distribution each token was drawn from; NaN as
        above."""
        return self._padded("entropy", torch.nan)

    @property
    def confidence(self) -> torch.Tensor:
        """float32 [N, T]: minus the mean log-probability of the best `confidence` tokens (DeepConf,
        arXiv 2508.15260), if decode was asked for it; else NaN."""
        return self._padded("confidence", torch.nan)

    @property
    def done(self) -> npt.NDArray[np.bool_]:
        """[N]: whether the path ended for good (end of text, model's length, invalid logits)."""
        return DONE[self.ends]

    @property
    def ended(self) -> list[str]:
        """Why each path stopped when it was last decoded: one of ENDS."""
        return [ENDS[end] for end in self.ends.tolist()]

    @property
    def new_lengths(self) -> Ints:
        """[N]: tokens after the prompt."""
        sizes = np.array([ids.size for ids in self.prompts], np.int64)
        written: Ints = self.lengths - sizes[self.prompt]
        return written

    def text(self, *, prompt: bool = False, special: bool = False) -> list[str]:
        """What each path wrote, as text; with its prompt before it, or special tokens shown, if
        asked."""
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise ValueError("text: this engine has no tokenizer")
        written = history.read(self.segment, self.rows, "tokens")
        if prompt:
            written = [
                np.concatenate([self.prompts[p], w])
                for p, w in zip(self.prompt.tolist(), written, strict=True)
            ]
        return [tokenizer.decode(w.tolist(), skip_special_tokens=not special) for w in written]

    def _padded(self, name: str, fill: float) -> torch.Tensor:
        parts = history.read(self.segment, self.rows, name)
        width = max((part.size for part in parts), default=0)
        dtype = np.int32 if name == "tokens" else np.float32
        out = np.full((len(parts), width), fill, dtype)
        for row, part in zip(out, parts, strict=True):
            row[: part.size] = part
        return torch.from_numpy(out)

    # --- what verbs are made of

    def _take(self, index: Ints) -> Self:
        """The paths at `index` as another object, but for their leaves: it holds nothing in the
        cache."""
        other = object.__new__(type(self))
        other.engine, other.prompts, other.words, other.cost = (
            self.engine,
            self.prompts,
            self.words,
            self.cost,
        )
        other.leaves = np.empty(0, np.int64)
        for name in ARRAYS:
            setattr(other, name, getattr(self, name)[index])
        other.segment, other._own = self.segment, self._own
        other._hidden, other._hidden_row = self._hidden, self._hidden_row[index]
        other.hollow = self.hollow
        return other

    def _known_hidden(self) -> tuple[torch.Tensor, Ints]:
        """The hidden states of paths that have one, each once, and each path's row there or -1."""
        known, row = np.flatnonzero(self._hidden_row >= 0), np.full(len(self), -1)
        used, row[known] = np.unique(self._hidden_row[known], return_inverse=True)
        return self._hidden[torch.from_numpy(used).to(self._hidden.device)], row

    def _with_hidden(self, which: Ints, hidden: torch.Tensor) -> tuple[torch.Tensor, Ints]:
        """All hidden states, and each path's row there, once the paths at `which` have these."""
        row = self._hidden_row.copy()
        row[which] = np.arange(which.size)
        kept = np.flatnonzero(self._hidden_row >= 0)
        if kept.size:
            rows, at = np.unique(self._hidden_row[kept], return_inverse=True)
            row[kept] = at + which.size
            old = self._hidden[torch.from_numpy(rows).to(hidden.device)]
            hidden = torch.cat([hidden[: which.size], old])
        return hidden, row

    def _no_hidden(self, rows: int) -> torch.Tensor:
        """Hidden states that are not known."""
        return self._hidden.new_full((rows, self._hidden.shape[1]), torch.nan)

    def begin_writing(self) -> None:
        """Makes the rows of the history these paths' own."""
        if not self._own:
            segment, rows = Segment(self.segment, self.rows), np.arange(len(self))
            self.segment, self.rows, self._own = segment, rows, True

    def sample_identity(self, which: Ints) -> tuple[Ints, Ints]:
        """(keys, 32-bit path ids) of the draws of the paths at `which`."""
        return sample_keys(self.seeds[which], self.words[self.prompt[which]], self.path_ids[which])


def joined(parts: Sequence[State]) -> State:
    """The paths of several states of one prefill as one more."""
    one = parts[0]._take(np.arange(len(parts[0])))
    for name in ARRAYS:
        setattr(one, name, np.concatenate([getattr(part, name) for part in parts]))
    one.segment = history.join([(part.segment, part.rows) for part in parts])
    one.rows, one._own = one.segment.rows_below, True
    hidden, rows = zip(*(part._known_hidden() for part in parts), strict=True)
    above = np.cumsum([0, *(known.shape[0] for known in hidden[:-1])])
    moved = [np.where(row < 0, -1, row + at) for row, at in zip(rows, above, strict=True)]
    one._hidden, one._hidden_row = torch.cat(hidden), np.concatenate(moved)
    one.hollow = any(part.hollow for part in parts)
    leaves = np.concatenate([part.leaves for part in parts])
    one.engine.cache.share(leaves, np.ones_like(leaves))
    one.leaves = leaves
    return one
