"""Paths: many continuations of one or more prompts, as arrays over one cache."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from . import history
from .arguments import array_of, for_each, whole_number, whole_numbers
from .cache import Ints
from .decode import Source, decode, held_interrupts
from .identity import child_ids
from .ownership import synchronized
from .path_state import DONE, PathState, joined
from .replay import refill
from .stops import Until


class Paths(PathState):
    """N paths that can be forked, decoded, lengthened, chosen among and scored.

    `fork` makes new paths and leaves these as they are. `decode`, `append` and `select` change
    these paths in place and return them. Pages are free as soon as no path holds them: drop paths
    with `select`, with `free`, or by forgetting the object. Copying or pickling them is an error: they
    hold pages of their engine's cache.

    Attributes:
        path_ids, parents, prompt: numpy arrays [N]. The path's id (see `identity`); the row it had
            in the Paths it was forked from, -1 for prompts; the index of its prompt in `prompts`.
        prompts: the token ids of each prompt.
        cost: what was spent on these prompts, by these paths and all that came of the same prefill.
    """

    @synchronized
    def fork(self, n: int | Sequence[int], *, seed: int | None = None, start: int = 0) -> Paths:
        """`n` new paths from each of these (or n[i] from path i), those of one path side by side.

        Nothing is computed or copied: the forks share every token with the path they came from, and
        the first of their writes to a page that is partly full copies that page.

        Draws depend on a path's seed, prompt, id and length alone. So the forks of equal prompts are
        the same n paths twice, and so are those of two calls: write `fork(2 * n)` for other ones, or
        give the second call a `start` of n or another seed.

        Args:
            seed: of the new paths' draws; None: the seed of the path each came from.
            start: the number of the first fork. The k-th fork of a path is the same path, with the
                same draws, whatever n is: fork(64) is fork(16) and fork(48, start=16).
        """
        times = for_each("n", whole_numbers("n", n, 0), len(self))
        for count in (times.max(initial=0), times.sum()):  # each bounded, the sum cannot overflow
            self.engine.check_paths("n", int(count))
        start = whole_number("start", start, 0, 2**62)
        seed = None if seed is None else whole_number("seed", seed)
        index = np.arange(times.size).repeat(times)
        k = np.arange(start, start + index.size)
        if times.size > 1:
            k -= (times.cumsum() - times).repeat(times)
        self._own = False
        forks = self._take(index)
        fresh = self.depth == 0
        if fresh.any():
            fresh &= self.new_lengths == 0
        forks.path_ids = child_ids(self.path_ids, self.lengths, fresh, index, k)
        forks.parents, forks.depth = index, forks.depth + 1
        if seed is not None:
            forks.seeds = np.full(index.size, seed, np.int64)
        forks.ends *= DONE[forks.ends]
        leaves = self.leaves[index]
        self.engine.cache.share(self.leaves, times)
        forks.leaves = leaves
        self.cost.forked(self.lengths, times - (times > 0))
        return forks

    @staticmethod
    def cat(paths: Sequence[Paths]) -> Paths:
        """The paths of several objects as one, in their order: they then decode in one batch.

        The originals stay as they are, as with `fork`. A path keeps its id and its seed, and so its
        draws: given twice, it goes on twice the same.

        Args:
            paths: of one prefill, which have their prompts and their `cost` in common.
        """
        if not isinstance(paths, Sequence) or not all(isinstance(part, Paths) for part in paths):
            raise TypeError(f"paths: got {reprlib.repr(paths)}, expected a list of Paths")
        if not paths or any(part.cost is not paths[0].cost for part in paths):
            raise ValueError(f"paths: got {reprlib.repr(paths)}, expected some, all of one prefill")
        with paths[0].lock:
            paths[0].engine.check_paths("paths", sum(map(len, paths)))
            return joined(paths)

    @synchronized
    def decode(
        self,
        until: Until = None,
        max_new_tokens: int | Sequence[int] | None = None,
        *,
        eos: Until = None,
        temperature: Any = 1.0,
        top_k: Any = 0,
        top_p: Any = 1.0,
        min_p: Any = 0.0,
        mask: torch.Tensor | None = None,
        confidence: int = 0,
        stop_if: Callable[[Paths, Ints], Any] | None = None,
        progress: bool | None = None,
        source: Source | None = None,
    ) -> Paths:
        """Decodes all paths that are not done, together; each stops by itself and leaves the batch.

        Args:
            until: stop strings or token ids, one or several, beside the model's own end of text. A
                path ends with the token that completes one; strings may span tokens, and are looked
                for in what this call decodes.
            max_new_tokens: at most so many tokens in this call, for all or for each path; None: up
                to the model's length.
            eos: stop strings or token ids that end a path for good, as the model's own end of text
                does; strings may have begun in what the path wrote before this call.
            temperature, top_k, top_p, min_p: as for `pyttc.sample`; a number, or one for each path.
            mask: int32 [N, ceil(V / 32)] or [ceil(V / 32)], the tokens allowed, as for
                `pyttc.sample`.
            confidence: k > 0 keeps minus the mean log-probability of the k best tokens at each
                step.
            stop_if: called after every step with these paths and the indices of those still
                running; returns which of these to stop (a bool each), or None.
            progress: show a bar; None: on a terminal, for long runs.
            source: called at every step, or every few, with the running rows, how many steps there
                may be, and a function that runs the model and draws for them; returns what is drawn,
                as that function does. It may keep it, or give what was kept in the function's place
                (with `replay.skip`). `stop_if` is then called as often as this is.

        Returns:
            These paths; `ended` says why each stopped.

        Raises:
            OutOfPages, KeyboardInterrupt: the paths are as they were after the last whole step;
                what was decoded is readable and decoding can go on.
        """
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        options = mask, confidence, stop_if, progress, source
        decode(self, until, eos, max_new_tokens, sampling, *options)
        return self

    @synchronized
    def append(self, text: Any, *, keep_eos: bool = True) -> Paths:
        """Lengthens the paths by forced tokens: one text or list of ids for all, or a list of them,
        one each.

        An empty one leaves its path as it is. The tokens go through the model with the next step. A
        path that was done goes on; its end-of-text token stays, or with keep_eos=False is taken
        back first.
        """
        engine = self.engine
        if engine.is_single("text", text):
            each = [engine.encode(text, special=False, name="text")] * len(self)
        else:
            each = [engine.encode(t, special=False, name="text") for t in text]
        if len(each) != len(self):
            raise ValueError(f"text: got {len(each)} texts, expected {len(self)}, one a path")
        counts = np.array([ids.size for ids in each], np.int64)
        if (self.lengths + counts > engine.max_length).any():
            longest = int((self.lengths + counts).max())
            raise ValueError(
                f"text: got one for a path of {longest} tokens, expected at most {engine.max_length}"
            )
        chosen = np.flatnonzero(counts)
        tokens = np.concatenate([np.zeros(0, np.int32), *each])
        self.begin_writing()
        self.segment.reserve(self.rows[chosen], counts[chosen])
        if not keep_eos:
            self._take_back_eos(chosen[self.ends[chosen] == 1])
        self.segment.extend(self.rows[chosen], counts[chosen], tokens)
        self.lengths[chosen] += counts[chosen]
        self.ends[chosen] = 0
        self._hidden_row[chosen] = -1
        self.cost.prompted(int(counts.sum()), int(counts.sum()))
        return self

    def _take_back_eos(self, which: Ints) -> None:
        if (self.lengths[which] == self.engine.cache.lengths(self.leaves[which])).any() or (
            self.segment.count[self.rows[which]] == 0
        ).any():
            raise ValueError(
                "keep_eos: the end of text was already scored or forked, and has to stay"
            )
        self.segment.count[self.rows[which]] -= 1
        self.lengths[which] -= 1

    @synchronized
    def select(self, indices: Any) -> Paths:
        """Keeps the paths at `indices` (or where a bool mask is True), in that order; the others
        are freed.

        A path chosen several times stays itself once; its further copies are forks of it, with ids
        and draws of their own. `parents` of all paths are then their rows before this call.
        """
        given = array_of("indices", indices, "row numbers or a bool for each path")
        if given.dtype == bool:
            if given.shape != (len(self),):
                raise ValueError(
                    f"indices: got bools {list(given.shape)}, expected [{len(self)}], one a path"
                )
            given = np.flatnonzero(given)
        index = whole_numbers("indices", given).reshape(-1)
        if index.size and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"indices: got {index.tolist()}, expected 0 to {len(self) - 1}")
        self.engine.check_paths("indices", index.size)
        order = np.argsort(index, kind="stable")
        copy = np.zeros(
            index.size, np.int64
        )  # the number of this copy of its path, 0 for the first
        sorted_index = index[order]
        first = np.searchsorted(sorted_index, sorted_index)
        copy[order] = np.arange(index.size) - first
        again = np.flatnonzero(copy)
        taken = self._take(index)
        if again.size:
            taken._own = False
            none = np.zeros(len(self), bool)
            of, k = index[again], copy[again]
            taken.path_ids[again] = child_ids(self.path_ids, self.lengths, none, of, k)
            self.cost.forked(self.lengths[of], np.ones_like(of))
        taken.parents = index
        kept, dropped = self.leaves[index], self.leaves
        self.engine.cache.share(kept, np.ones_like(kept))
        self.__dict__.update({**taken.__dict__, "leaves": kept})
        self.engine.cache.release(dropped)
        return self

    @synchronized
    def score(self, scorer: Callable[[Paths], Any]) -> torch.Tensor:
        """float32 [N] on the CPU: what `scorer` says of these paths, for instance a `LinearHead`.

        Its wall time is on the bill. What it computes outside the model it reports itself, with
        `spend_flops`, as `LinearHead` does.
        """
        if not callable(scorer):
            raise TypeError(f"scorer: got {type(scorer).__name__}, expected a callable")
        with self.cost.timed():
            given = scorer(self)
            if not isinstance(given, torch.Tensor):
                given = torch.from_numpy(array_of("scorer", given, "to be given numbers").copy())
            scores = given.reshape(-1).to("cpu", torch.float32)
        if scores.numel() != len(self):
            raise ValueError(
                f"scorer: gave {scores.numel()} scores, expected {len(self)}, one a path"
            )
        return scores

    @synchronized
    def hidden(self) -> torch.Tensor:
        """[N, H]: the model's last hidden state at each path's last token."""
        self.engine.model.follow()
        with held_interrupts(), self.cost.timed():
            self.forward(np.arange(len(self)))
        return self._hidden[torch.from_numpy(self._hidden_row).to(self._hidden.device)]

    @synchronized
    def free(self) -> None:
        """Gives everything back; no paths are left."""
        self.select([])

    @synchronized
    def spend_flops(self, flops: float) -> None:
        """Adds a scorer's work to the cost."""
        if not isinstance(flops, (int, float)) or not 0 <= flops < float("inf"):
            raise ValueError(f"flops: got {flops!r}, expected a finite number >= 0")
        self.cost.ran.flops += flops
        self.cost.unshared.flops += flops

    # --- what decoding is made of

    @synchronized
    def forward(self, which: Ints, skip: bool = False) -> None:
        """Runs the tokens of the paths at `which` that have not been through the model yet.

        With `skip` their room is taken and their cost is counted, and nothing is run: the paths
        are hollow until the next call without it.

        Raises:
            OutOfPages: nothing was changed.
        """
        if self.hollow and not skip:
            refill(self)
        waiting = which[self._hidden_row[which] < 0]
        if not waiting.size:
            return
        engine, cache = self.engine, self.engine.cache
        engine.collect()
        first = cache.lengths(self.leaves[waiting])
        counts = self.lengths[waiting] - first
        tokens = history.tail(self.segment, self.rows[waiting], counts)
        with self._room(waiting, counts) as leaves:
            if skip:
                hidden = self._no_hidden(waiting.size)
            else:
                hidden = engine.run(leaves, first, counts, tokens)
            states = self._with_hidden(waiting, hidden)
            self.leaves[waiting], (self._hidden, self._hidden_row) = leaves, states
        self.hollow |= skip
        self.cost.passed(first, counts, cache.tokens_under(leaves))
        self.cost.held(engine.kv_bytes, self.lengths)

    @contextlib.contextmanager
    def _room(self, which: Ints, counts: Ints) -> Iterator[Ints]:
        """Room in the cache for counts[i] more tokens of each path at `which`, and their leaves then. Taken
        back should what is done inside fail."""
        engine, before = self.engine, self.leaves[which]
        written = engine.cache.write(before, counts)
        try:
            engine.pool.copy(written.copy_from, written.copy_to)
            yield written.leaves
        except BaseException:
            engine.cache.take_back(before, written.leaves, counts)
            raise

    @synchronized
    def logits(self, which: Ints) -> torch.Tensor:
        """[which, V]: of the next token of the paths at `which`; forks that wrote nothing share a
        row."""
        self.forward(which)
        rows = self._hidden_row[which]
        model, distinct = self.engine.model, rows.size
        if (rows[1:] > rows[:-1]).all():
            whole = rows[-1] == rows.size - 1
            hidden = (
                self._hidden
                if whole
                else self._hidden[torch.from_numpy(rows).to(self._hidden.device)]
            )
            logits = model.logits(hidden)[: rows.size]
        else:
            used, inverse = np.unique(rows, return_inverse=True)
            distinct = used.size
            logits = model.logits(self._hidden[torch.from_numpy(used).to(self._hidden.device)])
            if distinct == 1:
                logits = logits.expand(rows.size, -1)
            else:
                logits = logits[torch.from_numpy(inverse).to(logits.device)]
        self.cost.sampled(rows.size, distinct)
        return logits
