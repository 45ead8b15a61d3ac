"""solve and stream: a strategy over prompts within a budget."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine import Engine
from ..engine.decode import held_interrupts
from ..engine.stops import Until
from . import asked, checks
from .budget import Budget
from .events import Verifier
from .journal import Journal
from .run import Run, Strategy, Tool
from .tree import SearchTree

END = object()  # of a strategy's steps, which may be None


@dataclass
class Result:
    """What a search found for one prompt.

    Attributes:
        answer: the text of the best path: verified, or else of those that came to their end the one the
            strategy prefers, or else of those cut at max_new_tokens, if it ranks paths; None without any.
        finished: whether that path came to its end, and was not cut.
        best: its last step in `tree`, -1 for none.
        verified: what the verifier says of it; None without a verifier.
        tree: every path of the run (of all prompts), with scores and why it ended.
        cost: of the run (of all prompts), a `Cost`.
        tokens, seconds, flops, dollars: what the run had spent of its budget by then.
        solved_after: the seconds after which a path of this prompt was verified, None while none is.
        stopped: the limit that ended the run, "interrupted", or None.
    """

    prompt: str
    answer: str | None
    finished: bool
    best: int
    verified: bool | None
    tree: SearchTree
    cost: Any
    tokens: int
    seconds: float
    flops: float
    dollars: float | None
    solved_after: float | None
    stopped: str | None


def stream(
    engine: Engine,
    prompts: str | Sequence[str],
    strategy: Strategy,
    budget: Budget | None = None,
    *,
    verify: Verifier | None = None,
    tool: Tool | None = None,
    until: Until = None,
    delimiter: str | None = None,
    max_new_tokens: int | None = None,
    stop_when_verified: bool = True,
    seed: int = 0,
    salt: str | bytes | None = "",
    on_step: Callable[[Run], None] | None = None,
    journal: str | Path | None = None,
    **sampling: Any,
) -> Iterator[list[Result]]:
    """`solve`, yielding the best so far of every prompt after each step; the last is final.

    A KeyboardInterrupt (Ctrl-C) while it decodes still yields the best so far, with all that was written
    on record and stopped = "interrupted", and is raised when the next is asked for.
    """
    texts = checks.texts("prompts", prompts)
    checks.strategy(strategy)
    options: dict[str, Any] = {
        "verify": verify,
        "tool": tool,
        "until": until,
        "delimiter": delimiter,
        "max_new_tokens": max_new_tokens,
        "stop_when_verified": stop_when_verified,
        "seed": seed,
    }
    checks.search(engine, budget, {**options, "on_step": on_step, **sampling})
    options["sampling"] = sampling
    budget = budget or Budget()
    with contextlib.ExitStack() as stack:
        held = None
        if journal is not None:
            request = {
                **asked.model(engine),
                "prompts": texts,
                "strategy": strategy,
                "budget": budget,
            }
            held = stack.enter_context(Journal(journal, asked.described({**request, **options})))
        with held_interrupts():
            run = Run(
                engine,
                texts,
                budget,
                salt=salt,  # a secret, and no part of what a journal says was asked
                on_step=on_step,
                journal=held,
                **options,
            )
        stack.callback(run.events.end)
        found = strategy.run(run)
        checks.expect(
            f"{type(strategy).__name__}.run", found, isinstance(found, Iterable), "steps: a yield"
        )
        steps = iter(found)
        try:
            while step(run, steps):
                yield results(run)
        except KeyboardInterrupt:
            run.meter.cut = "interrupted"
            yield results(run)
            raise
        run.events.flush()
        yield results(run)


def step(run: Run, steps: Iterator[Any]) -> bool:
    """Whether the strategy took another step. A Ctrl-C meanwhile is raised where the model has taken a
    token, or after the step, and nowhere between."""
    with held_interrupts() as run.check:
        return next(steps, END) is not END


def solve(
    engine: Engine,
    prompts: str | Sequence[str],
    strategy: Strategy,
    budget: Budget | None = None,
    **options: Any,
) -> Any:
    """Searches for an answer to each prompt, all prompts together in one ragged batch.

    Args:
        engine: the model.
        prompts: one text or several.
        strategy: how to search, such as `Beam(score=head, width=16)`.
        budget: of all prompts together: what one does not need goes to the others.
        verify: (prompt, text) -> bool, or 1 or 0, or None for a text that it fails on. Text comes from a
            model: parse it, never run it.
        tool: writes into paths, see `Tool`.
        until: texts (or token ids), one or several, that end a path as the model's own end of text does: it
            is verified and may be the answer. The token that completes one is its last and stays in its
            text.
        delimiter: the text that ends a step; None: a path is one step.
        max_new_tokens: of a path, at least 1; None: up to the model's length.
        stop_when_verified: whether a verified path ends its prompt's search.
        seed: of all draws, at least 0. The same seed gives the same result.
        salt: prompts share what they have in common with those of the same salt only, see
            `Engine.prefill`. No token depends on it; budgets of FLOPs and seconds count what ran.
        on_step: called with the `Run` after every token, or every few where a token takes little time.
        journal: a file that the run keeps of what it has done. The same call again, after a crash or a
            Ctrl-C, takes what is there as done and goes on: the results are those of one run that was
            not interrupted, bit for bit, and seconds are the sum. What the last second did may be done
            again. It is the journal of this call alone: JournalError for any other, and while another
            process uses it. Functions count as equal by their names and by the numbers, texts, tensors and
            functions that they enclose or have as defaults, objects by all that they hold (dataclasses:
            by the fields without an underscore before them); code, globals, and lists or dictionaries that
            a function encloses are not compared. TypeError for what cannot be, such as an open file.
        **sampling: temperature, top_k, top_p, min_p, mask, confidence for `Paths.decode`.

    Returns:
        A `Result` for one prompt, a list of them for several.

    Raises:
        TypeError, ValueError: for a wrong argument, named, before anything runs; where a verifier or scorer
            gives what is none of the above.
    """
    *_, last = stream(engine, prompts, strategy, budget, **options)
    return last[0] if isinstance(prompts, str) else last


def results(run: Run) -> list[Result]:
    run.tree.best = run.best.tolist()
    found = []
    for prompt, text in enumerate(run.tree.prompts):
        node = int(run.best[prompt])
        answer = run.tree.text(node) if node >= 0 else None
        verified = None
        if run.verify is not None:
            verified = bool(node >= 0 and run.tree.nodes[node].verified)
        after = float(run.solved_after[prompt])
        found.append(
            Result(
                prompt=text,
                answer=answer,
                finished=node >= 0 and run.tree.nodes[node].end == "eos",
                best=node,
                verified=verified,
                tree=run.tree,
                cost=run.cost,
                tokens=run.meter.tokens,
                seconds=run.meter.seconds,
                flops=run.meter.flops,
                dollars=run.meter.dollars,
                solved_after=None if math.isnan(after) else after,
                stopped=run.stopped,
            )
        )
    return found
