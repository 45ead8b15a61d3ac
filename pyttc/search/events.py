"""Events: what came into a run from outside its own rules, kept in order, to be told again.

A search is a function of its arguments but for what the model draws, what scorers, verifiers and tools
answer, and the clock. Each of these passes through `recall`. With a journal they are written down, and a
run that begins again is told them in the same order, without running anything, until there are no more.
"""

from __future__ import annotations

import base64
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from ..engine import Paths
from ..engine.cost import Cost, Work
from ..engine.multi_step import Drawn
from ..engine.replay import skip
from .budget import Meter
from .checks import verdict
from .journal import Journal, JournalError, Record
from .sandbox import Sandbox
from .saved import plain

SECONDS = 1.0  # of work that a crash may lose
Value = TypeVar("Value")
Scorer = Callable[[Paths], Any]
Verifier = Callable[[str, str], bool | int | float | None]
ALWAYS = {"logprobs", "processed_logprobs", "entropy"}


class Events:
    """The events of one run, which it shares with its `meter`.

    Attributes:
        cost: of the run, once there is one.
    """

    def __init__(self, meter: Meter, journal: Journal | None) -> None:
        self.meter, self.journal = meter, journal
        self.cost: Cost | None = None
        self._records = iter(()) if journal is None else journal.records()
        self._past: deque[list[Any]] = deque()  # events of a record that are yet to be told
        self._record: Record | None = None  # the one these are of
        self._new: list[list[Any]] = []
        self._written = time.perf_counter()
        self._next_record()

    @property
    def replaying(self) -> bool:
        return bool(self._past)

    def recall(self, kind: str, make: Callable[[], Value]) -> Value:
        """What `make` returned when the run was here before; where it was not, what it returns now.

        Raises:
            JournalError: where an event of another kind was here.
        """
        if self._past:
            found, value = self._past.popleft()
            if found != kind:
                raise self.damaged(f"a {found} where this run needs a {kind}")
            if not self._past:
                self._next_record()
            return value  # type: ignore[no-any-return]
        value = make()
        self.meter.tick()
        if self.journal is not None:
            self._new.append([kind, value])
            late = self.meter.seconds >= self.meter.budget.deadline
            if late or time.perf_counter() - self._written >= SECONDS:
                self.flush()
        return value

    def draw(self, paths: Paths, running: Any, most: int, make: Callable[[], Drawn]) -> Drawn:
        """A `source` of Paths.decode that recalls draws."""
        if self.journal is None:
            drawn = make()
            self.meter.tick()
            return drawn
        replaying = self.replaying
        packed = self.recall("draw", lambda: pack(make()))
        try:
            drawn = unpack(packed, running.size, paths.engine.model.vocab)
            if len(drawn[0]) > most:
                raise ValueError
            if replaying:
                skip(paths, running, drawn)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self.damaged(f"a draw that is not one of {running.size} paths") from None
        return drawn

    def prefilled(self, cost: Cost) -> None:
        """The prompts were read, at a cost that what else the engine held had a part in."""
        self.cost = cost
        self._settle(self.recall("prefill", lambda: bill(cost)))

    def score(self, paths: Paths, scorer: Scorer) -> list[float]:
        """Paths.score.

        Raises:
            ValueError: for NaN.
        """
        replaying = self.replaying
        found = self.recall("score", lambda: scored(paths, scorer))
        try:
            scores = [float(score) for score in found["scores"]]
            if len(scores) != len(paths):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise self.damaged(f"scores that are not those of {len(paths)} paths") from None
        if replaying:
            if found.get("through"):
                paths.forward(np.arange(len(paths)), skip=True)
            self._settle(found)
        return scores

    def verify(self, verify: Verifier, pairs: list[tuple[str, str]]) -> list[bool]:
        """What a verifier says of each (prompt, text)."""
        found = self.recall("verify", lambda: verdicts(verify, pairs))
        if not isinstance(found, list) or [type(one) for one in found] != [bool] * len(pairs):
            raise self.damaged(f"verdicts that are not on {len(pairs)} texts")
        return found

    def texts(
        self, kind: str, make: Callable[[], Sequence[str | None]], count: int
    ) -> list[str | None]:
        """What is appended to each of `count` paths."""
        found = self.recall(kind, lambda: list(make()))
        fits = isinstance(found, list) and len(found) == count
        if not fits or not all(text is None or isinstance(text, str) for text in found):
            raise self.damaged(f"texts that are not for {count} paths")
        return found

    def flush(self) -> None:
        """Writes down what is not yet written."""
        new, self._new = self._new, []
        if new and self.journal is not None and self.cost is not None:
            seconds = {"seconds": self.meter.seconds, "engine": self.cost.seconds}
            self.journal.append({**seconds, "events": new})
            self._written = time.perf_counter()

    def end(self) -> None:
        """Writes what is not yet written, and keeps out of the journal all that comes after: the run was
        cut short, and does what it would not have done here."""
        self._past.clear()
        try:
            self.flush()
        finally:
            self.journal = None

    def damaged(self, what: str) -> JournalError:
        path = self.journal.path if self.journal else ""
        return JournalError(f"{path}: does not fit this run: it holds {what}")

    def _settle(self, found: Record) -> None:
        try:
            settle(self.cost, found)  # type: ignore[arg-type]
        except (ValueError, TypeError, KeyError):
            raise self.damaged("costs that are none") from None

    def _next_record(self) -> None:
        """Sets the clocks to the end of the record that was told, and takes the next one."""
        if self._record:
            self.meter.resume(self._record["seconds"])
            if self.cost is not None:
                self.cost.ran.seconds = self._record["engine"]
        self._record = next(self._records, None)
        if self._record is None:
            return
        events, clocks = (
            self._record.get("events"),
            [self._record.get(k) for k in ("seconds", "engine")],
        )
        right = (
            isinstance(events, list) and events and all(isinstance(c, (int, float)) for c in clocks)
        )
        if not right or not all(isinstance(e, list) and len(e) == 2 for e in events or ()):
            raise self.damaged("a record of another kind")
        self._past.extend(events or ())


def pack(drawn: Drawn) -> Record:
    tokens, values = drawn
    arrays = {"tokens": tokens.astype("<i4")}
    arrays |= {name: value.astype("<f4") for name, value in values.items()}
    return {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}


def unpack(packed: Record, rows: int, vocab: int) -> Drawn:
    """Raises ValueError for what is not a draw of `rows` paths, of a step or several."""
    arrays = {
        name: np.frombuffer(
            base64.b64decode(text, validate=True), "<i4" if name == "tokens" else "<f4"
        ).reshape(-1, rows)
        for name, text in packed.items()
    }
    tokens = arrays.pop("tokens")
    fits = tokens.size > 0 and all(array.shape == tokens.shape for array in arrays.values())
    if not fits or not ALWAYS <= set(arrays) <= ALWAYS | {"confidence"}:
        raise ValueError
    if not -1 <= int(tokens.min()) <= int(tokens.max()) < vocab or tokens[:-1].min(initial=0) < 0:
        raise ValueError
    return tokens.astype(np.int32), {n: a.astype(np.float32) for n, a in arrays.items()}


def scored(paths: Paths, scorer: Scorer) -> Record:
    """What a scorer says of paths and leaves behind: its bill, and whether all their tokens went through
    the model."""
    scores = paths.score(scorer).tolist()
    wrong = next((row for row, score in enumerate(scores) if math.isnan(score)), None)
    if wrong is not None:
        raise ValueError(f"scorer: gave NaN for path {wrong} of {len(paths)}, expected a number")
    with paths.lock:
        through = bool((paths.engine.cache.lengths(paths.leaves) == paths.lengths).all())
    return {"scores": [plain(one) for one in scores], "through": through, **bill(paths.cost)}


def verdicts(verify: Verifier, pairs: list[tuple[str, str]]) -> list[bool]:
    """What a verifier says of each (prompt, text), in a sandbox of all at once.

    Raises:
        ValueError: for anything but True and False, 1 and 0, and None; in a sandbox, whose function a text
            may have got hold of, that is no.
    """
    if isinstance(verify, Sandbox):
        return [value == 1 for value in verify.many(pairs)]
    return [verdict(verify(*pair), pair[1]) for pair in pairs]


def bill(cost: Cost) -> Record:
    """Both columns of a cost."""
    return {"ran": dict(vars(cost.ran)), "unshared": dict(vars(cost.unshared))}


def settle(cost: Cost, found: Record) -> None:
    """Makes a cost what `bill` said it was. Raises ValueError for anything else."""
    for name, work in (("ran", cost.ran), ("unshared", cost.unshared)):
        values = {each.name: found[name][each.name] for each in fields(Work)}
        if not all(isinstance(value, (int, float)) for value in values.values()):
            raise ValueError
        vars(work).update(values)
    cost.counted()
