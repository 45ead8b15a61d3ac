"""The decoding loop: one pass of the model and one draw for all running paths, step after step."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ..ops.sample import Sample, sample
from ..ops.sampling import row_values
from . import multi_step
from .arguments import array_of, for_each, whole_number, whole_numbers
from .cache import Ints, OutOfPages
from .history import tail
from .multi_step import Drawn
from .stops import Stops, Until

if TYPE_CHECKING:
    from .paths import Paths

# Given the rows that draw, how many steps there may be, and what draws for them; returns what is drawn.
Source = Callable[[Ints, int, Callable[[], Drawn]], Drawn]
EOS, UNTIL, LENGTH, CONTEXT, INVALID, STOPPED = 1, 2, 3, 4, 5, 6
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
LONG_RUN = 2000  # tokens from which a bar is shown on a terminal


@torch.inference_mode()
def decode(
    paths: Paths,
    until: Until,
    eos: Until,
    max_new_tokens: Any,
    sampling: dict[str, Any],
    mask: torch.Tensor | None,
    confidence: int,
    stop_if: Callable[[Paths, Ints], Any] | None,
    progress: bool | None,
    source: Source | None,
) -> None:
    """What `Paths.decode` does."""
    engine, device, n = paths.engine, paths.engine.device, len(paths)
    engine.model.follow()
    stops = Stops(until, engine.tokenizer, engine.model.vocab)
    final = Stops(eos, engine.tokenizer, engine.model.vocab, "eos")
    is_eos = np.zeros(engine.model.vocab, bool)
    is_eos[[token for token in engine.eos if token < is_eos.size]] = True
    room = engine.max_length - paths.lengths
    limit = room
    if max_new_tokens is not None:
        limit = for_each("max_new_tokens", whole_numbers("max_new_tokens", max_new_tokens, 0), n)
    confidence = whole_number("confidence", confidence, 0, min(engine.model.vocab, 1024))
    mask = checked_mask(mask, n, engine.model.vocab, device)
    if stop_if is not None and not callable(stop_if):
        raise TypeError(f"stop_if: got {type(stop_if).__name__}, expected a callable or None")
    sampling = {name: per_path(name, value, n, device) for name, value in sampling.items()}
    may_end = is_eos | stops.is_stop | stops.may_end | final.is_stop | final.may_end
    sampler = Sampler(paths, sampling, mask, confidence, may_end)
    running = np.flatnonzero(~paths.done)
    paths.ends[running] = np.where(room[running] <= 0, CONTEXT, 0)
    paths.ends[running[(limit[running] <= 0) & (room[running] > 0)]] = LENGTH
    running = running[paths.ends[running] == 0]
    paths.begin_writing()
    decoded = np.zeros(n, np.int64)
    begun = time.perf_counter()
    with (
        bar(progress, int(np.minimum(limit, room)[running].sum())) as advance,
        held_interrupts() as check,
    ):
        while running.size:
            most = 1
            if stop_if is None or source is not None:
                most = int((np.minimum(limit, room) - decoded)[running].min())
            draw = partial(sampler, running, most)
            drawn = draw() if source is None else source(running, most, draw)
            steps = len(drawn[0])  # all but the last are written down
            decoded[running] += steps - 1
            tokens, arrays = drawn[0][-1], {name: value[-1] for name, value in drawn[1].items()}
            valid = tokens >= 0
            if not valid.all():
                paths.ends[running[~valid]] = INVALID
                running, tokens = running[valid], tokens[valid]
                arrays = {name: value[valid] for name, value in arrays.items()}
            own = paths.rows[running]
            ends = np.zeros(running.size, np.int8)
            ends[room[running] <= decoded[running] + 1] = CONTEXT
            ends[limit[running] <= decoded[running] + 1] = LENGTH
            ends[stops.met(tokens, paths.segment, own, decoded[running])] = UNTIL
            if eos is not None:
                ends[final.met(tokens, paths.segment, own, paths.new_lengths[running])] = EOS
            ends[is_eos[tokens]] = EOS
            paths.segment.reserve(own, np.ones_like(own))
            # the step is whole from here on
            paths.segment.push(
                own, tokens[None], **{name: value[None] for name, value in arrays.items()}
            )
            paths.lengths[running] += 1
            paths._hidden_row[running] = -1
            paths.ends[running] = ends
            decoded[running] += 1
            advance(steps * running.size)
            if ends.any():
                running = running[ends == 0]
            paths.cost.took(time.perf_counter() - begun)
            if stop_if is not None and running.size:
                stop = stop_if(paths, running)
                if stop is not None:
                    stop = array_of("stop_if", stop, "to be given bools").astype(bool)
                    stop = for_each("stop_if", stop, running.size)
                    paths.ends[running[stop]] = STOPPED
                    running = running[~stop]
            check()
            begun = time.perf_counter()


class Sampler:
    """Draws the next tokens of running paths: a pass of the model and a draw each, or several where it may.

    What stays as it is from step to step is gathered anew only when other paths run.
    """

    def __init__(
        self,
        paths: Paths,
        sampling: dict[str, Any],
        mask: torch.Tensor | None,
        confidence: int,
        may_end: npt.NDArray[np.bool_],
    ) -> None:
        self.paths, self.sampling, self.mask = paths, sampling, mask
        self.confidence, self.device = confidence, paths.engine.device
        self.may_end = torch.from_numpy(may_end)
        self.running: Ints | None = None
        self.parameters: dict[str, Any] = {}
        self.seconds = multi_step.SECONDS  # of a step

    def __call__(self, running: Ints, most: int) -> Drawn:
        """Draws for `most` steps at most."""
        if running is not self.running:
            self.parameters = self._parameters(running)
            self.running = running
        begun = time.perf_counter()
        drawn = self._several(
            running, min(most, multi_step.STEPS, int(multi_step.SECONDS / self.seconds))
        )
        if drawn is None:
            drawn = self._one(running)
        self.seconds = (time.perf_counter() - begun) / len(drawn[0])
        return drawn

    def _several(self, running: Ints, steps: int) -> Drawn | None:
        """None where steps can only be taken one by one."""
        paths, go = self.paths, self.paths.engine.model.steps
        if steps < 2 or go is None or paths.hollow or not multi_step.possible(paths, running):
            return None
        last = tail(paths.segment, paths.rows[running], np.ones_like(running))
        tokens = torch.from_numpy(last.astype(np.int64))

        def run(leaves: Ints, first: Ints) -> tuple[torch.Tensor, Drawn]:
            positions, engine = torch.from_numpy(first), paths.engine
            tree, pages = engine._trees.steps(leaves, 0), (engine.pool.k, engine.pool.v)
            options = {"topk": self.confidence, **self.parameters}
            hidden, found = go(tokens, positions, pages, tree, steps, self.may_end, **options)
            return hidden, self._drawn(found)

        try:
            return multi_step.advance(paths, running, steps, run)
        except OutOfPages:  # for so many
            return None

    def _one(self, running: Ints) -> Drawn:
        logits = self.paths.logits(running)
        positions = torch.from_numpy(self.paths.lengths[running]).to(self.device)
        found = sample(logits, positions=positions, topk=self.confidence, **self.parameters)
        return self._drawn(Sample(*(each[None] for each in found)))

    def _drawn(self, found: Sample) -> Drawn:
        """What is kept of steps."""
        names = ("logprobs", "processed_logprobs", "entropy")
        values = {name: getattr(found, name) for name in names}
        if self.confidence:
            values["confidence"] = torch.stack([-best.mean(-1) for best in found.topk_logprobs])
        tokens = found.tokens.cpu().numpy().astype(np.int32)
        return tokens, {name: value.cpu().numpy() for name, value in values.items()}

    def _parameters(self, running: Ints) -> dict[str, Any]:
        packed = np.stack(self.paths.sample_identity(running))
        seed, path_ids = torch.from_numpy(packed).to(self.device)
        at = torch.from_numpy(running).to(self.device)
        here = {k: v[at] if isinstance(v, torch.Tensor) else v for k, v in self.sampling.items()}
        rows = row_values((seed, *(here[name] for name in SAMPLING)), "logits", seed)
        mask = None if self.mask is None else self.mask[at]
        return dict(zip(("seed", *SAMPLING), rows, strict=True), path_ids=path_ids, mask=mask)


def per_path(name: str, value: Any, n: int, device: torch.device) -> Any:
    """A number as it is, anything else as a tensor [n]."""
    if isinstance(value, (int, float)):
        return value
    if not isinstance(value, torch.Tensor):
        value = torch.from_numpy(array_of(name, value, f"a number or [{n}]").copy())
    tensor = value.to(device)
    if tensor.shape != (n,):
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected a number or [{n}]")
    return tensor.float() if tensor.dtype.is_floating_point else tensor.long()


def checked_mask(
    mask: torch.Tensor | None, n: int, vocab: int, device: torch.device
) -> torch.Tensor | None:
    """[n, words] on the device, or None."""
    if mask is None:
        return None
    words = -(-vocab // 32)
    if not isinstance(mask, torch.Tensor) or mask.dtype is not torch.int32:
        kind = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise TypeError(f"mask: got {kind}, expected a tensor of int32, a bit a token")
    if mask.shape not in ((words,), (n, words)):
        raise ValueError(
            f"mask: got shape {list(mask.shape)}, expected [{words}] or [{n}, {words}]"
        )
    return mask.to(device).expand(n, words)


@contextlib.contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Puts Ctrl-C off to the end of a step: the yielded function raises it, or the end of the block. A
    second one is not put off. Where a process ignores it, or another language handles it, that stays so."""
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or before in (None, signal.SIG_IGN):
        yield lambda: None
        return
    pressed: list[bool] = []

    def press(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    check()


@contextlib.contextmanager
def bar(progress: bool | None, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over tokens, or nothing: yields the function that advances it."""
    if progress is None:
        progress = sys.stderr.isatty() and total >= LONG_RUN
    if not progress:
        yield lambda tokens: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("decoding", total=total)
        yield lambda tokens: shown.advance(task, tokens)
