"""Run: what a strategy works with. The verbs of `Paths`, within a budget, with everything on record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..engine import Engine, Paths
from ..engine.arguments import for_each, whole_numbers
from ..engine.cache import Ints
from ..engine.decode import CONTEXT, EOS
from ..engine.stops import Until
from .allowance import fits, share
from .budget import Budget, Meter
from .checks import sampling_names
from .events import Events, Scorer, Verifier
from .journal import Journal
from .texts import decoded, encoded, written
from .tree import Node, SearchTree

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
End = tuple[int, int, int]  # prompt, path and the tokens it had written when it finished


@dataclass(frozen=True)
class Tool:
    """Something that writes into a path: when the path has written `until`, `reply(prompt, text)` gives
    the text to append, or None to end the path."""

    until: str
    reply: Callable[[str, str], str | None]


class Strategy(Protocol):
    """How to search. A small frozen dataclass: its fields are its settings, its state lives in `run`."""

    def run(self, run: Run) -> Iterable[Paths | None]:
        """Searches from run.root. Yields after every step, the paths it holds or nothing: what the run keeps
        is in its record."""
        ...


class Run:
    """One search over one or many prompts.

    Attributes:
        root: the prompts as Paths, one each.
        tree: the record so far.
        solved [prompts]: whether a path of the prompt was verified (where that ends the prompt's search).
        solved_after [prompts]: the seconds it took to be, NaN while it is not.
        best [prompts]: the node of the best path so far, -1 for none.
        stopped: the name of the budget's limit that is reached, "interrupted", or None.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[str],
        budget: Budget,
        *,
        verify: Verifier | None,
        tool: Tool | None,
        until: Until = None,
        delimiter: str | None,
        max_new_tokens: int | None,
        stop_when_verified: bool,
        seed: int,
        sampling: dict[str, Any],
        salt: str | bytes | None = "",
        on_step: Callable[[Run], None] | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.engine, self.verify, self.tool, self.seed = engine, verify, tool, seed
        self.until, self.delimiter, self.sampling = until, delimiter, sampling
        self.stop_when_verified, self.on_step = stop_when_verified, on_step
        self.check: Callable[[], None] = lambda: None  # raises a Ctrl-C that was put off
        self.meter = Meter(budget)
        self.events = Events(self.meter, journal)
        self.tree = SearchTree(list(prompts))
        self.root = engine.prefill(list(prompts), seed=seed, salt=salt)
        self.events.prefilled(self.cost)
        self.limit: int = engine.max_length if max_new_tokens is None else max_new_tokens
        self.meter.spend(0, self.root.cost.ran.flops)
        count = len(prompts)
        self.solved, self.solved_after = np.zeros(count, bool), np.full(count, np.nan)
        self.best = np.full(count, -1)
        self._best_rank = [(False, -np.inf)] * count  # whether it finished, and its score
        self._node: dict[tuple[int, int], int] = {}  # of each path, the last step on record
        self._ended: set[tuple[int, int]] = set()
        self._verdict: dict[End, bool] = {}  # of paths that finished within this step
        # Paths that got no reply of the tool, and why.
        self._refused: dict[tuple[int, int], str] = {}

    @property
    def cost(self) -> Any:
        return self.root.cost

    @property
    def stopped(self) -> str | None:
        return self.meter.exhausted

    # --- what is where

    @staticmethod
    def keys(paths: Paths) -> list[tuple[int, int]]:
        return list(zip(paths.prompt.tolist(), paths.path_ids.tolist(), strict=True))

    def nodes(self, paths: Paths) -> list[int]:
        """The last step on record of each path, -1 for none."""
        wrote = (paths.new_lengths > 0).tolist()  # a prompt has the key of its first fork
        keys = zip(self.keys(paths), wrote, strict=True)
        return [self._node.get(key, -1) if any_ else -1 for key, any_ in keys]

    def open(self, paths: Paths) -> Bools:
        """Which paths may go on: not ended, prompt not solved, budget left."""
        if self.stopped:
            return np.zeros(len(paths), bool)
        ended = np.array([key in self._ended for key in self.keys(paths)], bool)
        room = paths.new_lengths < self.limit
        can: Bools = ~paths.done & ~ended & room & ~self.solved[paths.prompt]
        return can

    def finished(self, paths: Paths) -> Bools:
        """Which paths came to an end of their own, the model's or `until`, and were not cut off."""
        return np.array([end == "eos" for end in paths.ended], bool)

    def groups(self, paths: Paths) -> Iterator[tuple[int, Ints]]:
        """(prompt, rows of its paths), for each prompt that has any."""
        for prompt in np.unique(paths.prompt).tolist():
            yield prompt, np.flatnonzero(paths.prompt == prompt)

    # --- the verbs

    def fork(self, paths: Paths, n: int | Sequence[int] | Ints, start: int = 0) -> Paths:
        """Paths.fork, on record."""
        forks = paths.fork(n, start=start)  # type: ignore[arg-type]
        nodes = self.nodes(paths)
        for key, row in zip(self.keys(forks), forks.parents.tolist(), strict=True):
            if nodes[row] >= 0:
                self._node[key] = nodes[row]
        return forks

    def select(self, paths: Paths, indices: Any) -> Paths:
        """Paths.select, on record: who is not chosen ends as "dropped"."""
        keys, nodes = self.keys(paths), self.nodes(paths)
        paths.select(indices)
        chosen = set(paths.parents.tolist())
        for row, key in enumerate(keys):
            if row not in chosen:
                self._close(key, nodes[row], "dropped")
        for key, row in zip(self.keys(paths), paths.parents.tolist(), strict=True):
            if nodes[row] >= 0:
                self._node[key] = nodes[row]
        return paths

    def drop_closed(self, paths: Paths) -> Paths:
        """Frees the paths that cannot go on."""
        return self.select(paths, np.flatnonzero(self.open(paths)))

    def append(self, paths: Paths, texts: Sequence[str], *, keep_eos: bool = True) -> Paths:
        """Paths.append of one text a path, within the budget and on record."""
        before, fit = paths.new_lengths, fits(self.meter, paths)
        ids = encoded(
            self.engine.tokenizer, self.events.texts("append", lambda: list(texts), len(paths))
        )
        # what there is no room for is left out
        fitting = [one if one and fit(row, len(one)) else [] for row, one in enumerate(ids)]
        paths.append(fitting, keep_eos=keep_eos)
        for key, one in zip(self.keys(paths), fitting, strict=True):
            if one:
                self._ended.discard(key)
        self._record(paths, before)
        return paths

    def score(self, paths: Paths, scorer: Scorer) -> Floats:
        """float32 [N]: Paths.score as an array, on record and on the bill.

        A step that holds the end of text and nothing else keeps the score of the step before it: scorers
        of steps are made for where steps end.
        """
        spent = self.cost.ran.flops
        scores = self.events.score(paths, scorer)
        self.meter.spend(0, self.cost.ran.flops - spent)
        for row, index in enumerate(self.nodes(paths)):
            if index >= 0:
                node = self.tree.nodes[index]
                before = self.tree.nodes[node.parent].score if node.parent >= 0 else None
                if before is not None and not node.text and len(node.tokens) == 1:
                    scores[row] = before
                node.score = scores[row]
        return np.array(scores, np.float32)

    def rank(self, paths: Paths, scores: Any, among: Bools | None = None) -> None:
        """Offers paths as answers: of those that finished (or of `among`) the best score so far leads. While
        a prompt has none of these, paths do that have no room to go on."""
        values = np.asarray(scores, np.float64)
        chosen = self.finished(paths) if among is None else among
        cut = (paths.new_lengths >= self.limit) | (paths.ends == CONTEXT)
        for row in np.flatnonzero((chosen | cut) & (values > -np.inf)).tolist():
            prompt, rank = int(paths.prompt[row]), (bool(chosen[row]), float(values[row]))
            if rank > self._best_rank[prompt]:
                self._best_rank[prompt] = rank
                self.best[prompt] = self._node.get((prompt, int(paths.path_ids[row])), -1)

    def choose(self, prompt: int, node: int) -> None:
        """Makes a node the prompt's answer, whatever is ranked before or after."""
        self.best[prompt], self._best_rank[prompt] = node, (True, np.inf)

    def finish(self, paths: Paths, **sampling: Any) -> Iterator[Paths]:
        """Steps until no path can go on, or none did; yields after each step."""
        moved = True
        while moved and self.open(paths).any():
            before = paths.new_lengths
            self.step(paths, **sampling)
            moved = bool((paths.new_lengths != before).any())
            yield paths

    def step(
        self,
        paths: Paths,
        max_new_tokens: int | Sequence[int] | Ints | None = None,
        **sampling: Any,
    ) -> Paths:
        """Decodes each open path to the next delimiter, tool replies included, and never past the budget.

        Paths that end are verified, and where that ends a prompt's search its other paths stop at once.

        Args:
            max_new_tokens: in this step, for all or for each path; 0 leaves a path where it is, None: no
                other limit than the path's own.
            sampling: what differs from the run's, as temperature=0.0.
        """
        sampling_names(sampling)
        options = {**self.sampling, **sampling}
        before = paths.new_lengths
        stops = [stop for stop in (self.delimiter, self.tool and self.tool.until) if stop]
        left = np.where(self.open(paths), self.limit - before, 0)
        if max_new_tokens is not None:
            most = whole_numbers("max_new_tokens", max_new_tokens, 0)
            left = np.minimum(left, for_each("max_new_tokens", most, len(paths)))
        try:
            while (limits := share(self.meter, paths, left)).any():
                lengths = paths.new_lengths
                wrote = self._decode(paths, limits, stops, options) - lengths
                ended = np.array(paths.ended)
                replied = self._use_tool(paths, (limits > 0) & (ended == "until"))
                go_on = ((ended == "length") | replied) & ~self.solved[paths.prompt]
                left = np.where(go_on, left - wrote, 0)
        except BaseException as error:  # what an interrupted step has written is not lost
            self.events.end()
            if isinstance(error, KeyboardInterrupt):
                self.meter.cut = "interrupted"
            self._record(paths, before)
            self._close_ended(paths, ask=False)
            raise
        self._record(paths, before)
        self._close_ended(paths, ask=True)
        return paths

    # --- how

    def _decode(self, paths: Paths, share: Ints, stops: list[str], options: dict[str, Any]) -> Ints:
        """Decodes share[i] tokens at most of path i, on the bill; returns the new lengths."""
        tokens, flops = int(paths.new_lengths.sum()), self.cost.ran.flops
        limits = share.tolist()
        try:
            source = partial(self.events.draw, paths)
            hooks: dict[str, Any] = {"stop_if": self._watch, "source": source, "progress": False}
            paths.decode(stops or None, limits, eos=self.until, **hooks, **options)
        finally:
            spent = int(paths.new_lengths.sum()) - tokens
            self.meter.spend(spent, self.cost.ran.flops - flops)
        return paths.new_lengths

    def _watch(self, paths: Paths, running: Ints) -> Bools | None:
        """After every token, or every few: verifies paths that just ended, and stops what need not go on."""
        self.check()
        self._verify_ended(paths)
        if self.on_step is not None:
            self.on_step(self)
        if self.meter.seconds >= self.meter.budget.deadline:
            return np.ones(running.size, bool)
        stop: Bools = self.solved[paths.prompt[running]]
        return stop if stop.any() else None

    def _verify_ended(self, paths: Paths) -> None:
        if self.verify is None or not self.stop_when_verified:
            return
        fresh, rows = [], []
        for row in np.flatnonzero(paths.ends == EOS).tolist():
            prompt, path = int(paths.prompt[row]), int(paths.path_ids[row])
            if (prompt, path) not in self._ended:
                self._ended.add((prompt, path))
                if not self.solved[prompt]:
                    fresh.append((prompt, path, int(paths.new_lengths[row])))
                    rows.append(row)
        texts = written(paths, np.array(rows, np.int64))
        for at, right in zip(fresh, self._verdicts(fresh, texts), strict=True):
            if right:
                self._solve(at[0])

    def _verdicts(self, asked: Sequence[End], texts: Sequence[str]) -> list[bool]:
        """What the verifier says of texts, each what a path had written at an end; kept in `_verdict`."""
        if self.verify is None or not asked:
            return []
        pairs = [(self.tree.prompts[end[0]], text) for end, text in zip(asked, texts, strict=True)]
        said = self.events.verify(self.verify, pairs)
        self._verdict.update(zip(asked, said, strict=True))
        return said

    def _solve(self, prompt: int) -> None:
        self.solved[prompt] = True
        if np.isnan(self.solved_after[prompt]):
            self.solved_after[prompt] = self.meter.seconds

    def _use_tool(self, paths: Paths, at_stop: Bools) -> Bools:
        """Replies to paths that stopped at the tool's text; returns which of them are still within a step."""
        go_on = np.zeros(len(paths), bool)
        tool = self.tool
        if tool is None or not at_stop.any():
            return go_on
        rows = np.flatnonzero(at_stop)
        keys, fit = self.keys(paths), fits(self.meter, paths)
        prompts = [self.tree.prompts[prompt] for prompt in paths.prompt[rows].tolist()]
        asked = list(zip(prompts, written(paths, rows), strict=True))
        replies = self.events.texts(
            "reply",
            lambda: [tool.reply(p, text) if text.endswith(tool.until) else "" for p, text in asked],
            rows.size,
        )
        appended: list[list[int]] = [[] for _ in keys]
        ids = encoded(self.engine.tokenizer, [reply or "" for reply in replies])
        for row, reply, one in zip(rows.tolist(), replies, ids, strict=True):
            if reply is None or not fit(row, len(one)):
                self._ended.add(keys[row])
                self._refused[keys[row]] = "tool" if reply is None else "room"
            elif reply:
                appended[row] = one
                go_on[row] = not (self.delimiter and reply.endswith(self.delimiter))
        if any(appended):
            paths.append(appended)
        return go_on

    def _record(self, paths: Paths, before: Ints) -> None:
        """A node for each path that has more tokens than `before`."""
        after, keys = paths.new_lengths, self.keys(paths)
        rows = np.flatnonzero(after > before).tolist()
        tokens, logprobs = paths.tokens.numpy(), paths.logprobs.numpy()
        column = np.arange(logprobs.shape[1])
        counted = (column >= before[:, None]) & (column < after[:, None]) & ~np.isnan(logprobs)
        # rounded, so that the width of the table does not show
        sums = np.where(counted, logprobs, 0).sum(1, dtype=np.float64).astype(np.float32).tolist()
        ids = [tokens[row, before[row] : after[row]].tolist() for row in rows]
        for row, one, text in zip(rows, ids, decoded(self.engine.tokenizer, ids), strict=True):
            (prompt, path), parent = keys[row], self._node.get(keys[row], -1)
            self._node[keys[row]] = len(self.tree.nodes)
            self.tree.nodes.append(Node(parent, prompt, path, text, one, sums[row]))

    def _close(self, key: tuple[int, int], node: int, end: str) -> None:
        self._ended.add(key)
        if node >= 0 and not self.tree.nodes[node].end:
            self.tree.nodes[node].end = end

    def _close_ended(self, paths: Paths, ask: bool) -> None:
        """Says on record why paths stopped, and what the verifier says of those that finished; it is asked
        only if `ask`."""
        nodes, can_go_on, lengths = self.nodes(paths), self.open(paths), paths.new_lengths.tolist()
        finished: dict[End, int] = {}
        cut = []
        for row, (key, end) in enumerate(zip(self.keys(paths), paths.ended, strict=True)):
            if can_go_on[row] or nodes[row] < 0 or self.tree.nodes[nodes[row]].end:
                continue
            node = self.tree.nodes[nodes[row]]
            node.end = self._refused.get(key, end)
            if end == "eos":
                node.end = end
                self._ended.add(key)
                finished[(*key, lengths[row])] = nodes[row]
            else:
                cut.append((key[0], node))
        unknown = [at for at in finished if at not in self._verdict] if ask else []
        self._verdicts(unknown, [self.tree.text(finished[at]) for at in unknown])
        for at, index in finished.items():
            self.tree.nodes[index].verified = self._verdict.pop(at, None)
            if self.tree.nodes[index].verified and self.stop_when_verified:
                self._solve(at[0])
                self.choose(at[0], index)
        for prompt, node in cut:
            node.end = "solved" if self.solved[prompt] else self.stopped or node.end
