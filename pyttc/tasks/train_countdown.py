"""Trains a Countdown model: python -m pyttc.tasks.train_countdown --size base --out DIR --steps
4000

Everything is seeded: data shard i of seed s is the same everywhere, and a run that is stopped
continues from its last checkpoint. The learning rate is constant until the last `--decay` steps, so
`--steps` may be changed when a run is continued, as long as the decay had not begun. Writes
DIR/checkpoint.safetensors (weights and optimizer), DIR/log.jsonl and, at the end, DIR/model, a
transformers checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from .checkpoint import save_model
from .countdown_data import Examples, build
from .countdown_text import VOCABULARY
from .llama import Llama, Shape
from .optimizer import Optimizer

SHAPES = {
    "base": Shape(len(VOCABULARY), 192, 512, 5, 6, 2),
    "small": Shape(len(VOCABULARY), 64, 256, 5, 2, 1),
}
SIZES = {3: 0.18, 4: 0.7, 5: 0.12}
BATCH = 8192  # tokens
REWARD_WEIGHT = 0.25  # of the label loss beside the text's
LONG = 2048  # tokens of a long row, about 37 solved examples


def shard(cache: Path, seed: int, index: int, count: int) -> Examples:
    """Examples number `index` of a seed, built once and kept in `cache`."""
    names = ("tokens", "starts", "written", "targets", "labels")
    path = cache / f"{seed}_{index}_{count}.npz"
    if not path.exists():
        examples = build(count, seed=seed * 100_000 + index, sizes=SIZES)
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **{name: getattr(examples, name) for name in names})
        partial.rename(path)
    with np.load(path, allow_pickle=False) as arrays:
        return Examples(*(arrays[name] for name in names))


def pack(lengths: np.ndarray, width: int, first: int, open_count: int) -> list[list[int]]:
    """Rows of lines, numbered from `first`, each as full as `width` allows: a line goes to the
    fullest of `open_count` open rows that still has room. What is longer than a row is left out, as
    are the rows still open at the end."""
    rows: list[list[int]] = []
    room = np.zeros(open_count, np.int64)
    open_rows: list[list[int]] = [[] for _ in range(open_count)]
    for i, length in enumerate(lengths):
        if length > width:
            continue
        fits = np.flatnonzero(room >= length)
        at = int(fits[room[fits].argmin()]) if len(fits) else int(room.argmin())
        if not len(fits):
            if open_rows[at]:
                rows.append(open_rows[at])
            open_rows[at], room[at] = [], width
        open_rows[at].append(first + i)
        room[at] -= length
    return rows


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def batches(examples: Examples, rng: np.random.Generator, *, long: bool) -> Iterator[Batch]:
    """Tokens [rows, width], the distribution of each next token [rows, width, V], 0 where the model
    does not write, and labels [rows, width] at delimiters, -1 elsewhere. 16 lines in 17 are packed
    into rows of 128, the others, if `long`, into rows of LONG."""
    lengths = np.diff(examples.starts)
    # what is to be learnt about the character after each place; the last row of the table is
    # nothing
    which = np.full(len(examples.tokens), len(examples.targets), np.int64)
    which[examples.written - 1] = np.arange(len(examples.targets))
    table = np.concatenate([examples.targets, np.zeros((1, len(VOCABULARY)), np.uint8)])
    labels = np.full(len(examples.tokens), -1, np.int8)
    labels[examples.labels[:, 0]] = examples.labels[:, 1]
    cut = len(lengths) * 16 // 17
    plans = []
    for width, first, last, open_count in ((128, 0, cut, 128), (LONG, cut, len(lengths), 4)):
        if width == LONG and not long:
            continue
        rows = pack(lengths[first:last], width, first, open_count)
        rng.shuffle(rows)
        size = BATCH // width
        plans += [(width, rows[i : i + size]) for i in range(0, len(rows) - size + 1, size)]
    for i in rng.permutation(len(plans)):
        width, rows = plans[i]
        tokens = np.zeros((len(rows), width), np.int64)
        next_is = np.full((len(rows), width), len(table) - 1, np.int64)
        reach = np.full((len(rows), width), -1, np.int8)
        for r, row in enumerate(rows):
            at = 0
            for number in row:
                line = slice(examples.starts[number], examples.starts[number + 1])
                end = at + line.stop - line.start
                tokens[r, at:end] = examples.tokens[line]
                next_is[r, at:end] = which[line]
                reach[r, at:end] = labels[line]
                at = end
        yield torch.from_numpy(tokens), torch.from_numpy(table[next_is]), torch.from_numpy(reach)


def losses_of(
    model: Llama, tokens: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy per written token and per label, in nats."""
    hidden = model(tokens)
    shares = targets.float() * (1 / 255)
    loss = -(shares * model.logits(hidden).log_softmax(-1)).sum() / shares.sum()
    there = (labels >= 0).float()
    scores = F.linear(hidden, model.reward.weight, model.reward.bias)[..., 0]
    errors = F.binary_cross_entropy_with_logits(
        scores, labels.clamp_min(0).float(), reduction="none"
    )
    return loss, (errors * there).sum() / there.sum()


def floor_of(targets: torch.Tensor) -> float:
    """The least cross-entropy that is possible: the entropy of the targets."""
    shares = targets.float() / 255
    return float(-(shares.clamp_min(1e-9).log() * shares).sum() / shares.sum())


def train(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    model = Llama(SHAPES[options.size], torch.bfloat16)
    model.initialize(options.seed)
    optimizer = Optimizer(model)
    out, step, tokens_seen, seconds = Path(options.out), 0, 0, 0.0
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = out / "checkpoint.safetensors", out / "log.jsonl"
    if checkpoint.exists():
        state = load_file(checkpoint)
        step, tokens_seen = int(state.pop("step")), int(state.pop("tokens"))
        seconds = float(state.pop("seconds"))
        optimizer.load(state)
    with log.open("a") as file:
        how = {name: value for name, value in vars(options).items() if name not in ("out", "cache")}
        file.write(json.dumps({"start": step, **how, "torch": torch.__version__}) + "\n")
    losses = torch.compile(losses_of, dynamic=False) if options.compile else losses_of

    workers = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    cache = Path(options.cache)
    # whole shards are replayed from their order alone: `done` batches of it are skipped after a
    # resume
    index, done = 0, step
    pending: Future[Examples] = workers.submit(shard, cache, options.seed, 0, options.shard)
    sums = np.zeros(3)
    clock, since = time.perf_counter(), time.process_time()
    while step < options.steps:
        examples = pending.result()
        pending = workers.submit(shard, cache, options.seed, index + 1, options.shard)
        rng = np.random.default_rng([options.seed, index])
        index, empty = index + 1, True
        for tokens, targets, labels in batches(examples, rng, long=index > options.long_from):
            empty = False
            if done:
                done -= 1
                continue
            left = (options.steps - step) / max(options.decay, 1)
            scale = min(1.0, (step + 1) / 50, left)
            loss, error = losses(model, tokens, targets, labels)
            torch.autograd.backward(loss + REWARD_WEIGHT * error)
            optimizer.step(scale)
            step, tokens_seen = step + 1, tokens_seen + tokens.numel()
            sums += loss.item(), floor_of(targets), error.item()
            if step % options.log_every == 0 or step == options.steps:
                count = (step - 1) % options.log_every + 1
                now, cpu = time.perf_counter(), time.process_time()
                seconds += cpu - since
                row = {
                    "step": step,
                    "loss": round(sums[0] / count, 4),
                    "floor": round(sums[1] / count, 4),
                    "reward_loss": round(sums[2] / count, 4),
                    "rate": round(scale, 3),
                    "tokens": tokens_seen,
                    "cpu_seconds": round(seconds, 1),
                    "wall_seconds": round(now - clock, 1),
                }
                clock, since = now, cpu
                sums[:] = 0.0
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if step % options.save_every == 0 or step == options.steps:
                state = optimizer.state()
                state["step"], state["tokens"] = torch.tensor(step), torch.tensor(tokens_seen)
                state["seconds"] = torch.tensor(seconds)
                save_file(state, out / "partial.safetensors")
                (out / "partial.safetensors").rename(checkpoint)
            if step == options.steps:
                break
        if empty:
            raise ValueError(f"--shard {options.shard}: too few examples for one batch")
    workers.shutdown(cancel_futures=True)
    save_model(model, out / "model")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="base")
    parser.add_argument("--out", required=True, help="folder of the run; continued if it holds one")
    parser.add_argument("--cache", required=True, help="folder for generated examples")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--decay", type=int, default=600, help="steps of linear decay at the end")
    parser.add_argument("--shard", type=int, default=50_000, help="examples generated at a time")
    parser.add_argument("--long-from", type=int, default=4, help="first shard with long rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
