"""Decoding steps of N paths from one prompt: the engine beside transformers' generate.

    python -m benchmarks.bench_engine [--model 125M|0.5B] [--threads 1,2] [--seconds 10] [--quick] [--dry-run]

A Llama- or Qwen-shaped model with random weights, bfloat16; both sample at temperature 1 and never end by
themselves. The two run in turns in one process, ours of more tokens since it takes several steps at once,
until the seconds for a point are spent. generate is called with num_return_sequences=N and a cache that
already holds the prompt for each of the N: on its own it would run the prompt N times, which is left out, in
its favour.
Rows go to benchmarks/rows/<device>.jsonl as those of benchmarks.run. About 5 minutes a thread count.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.progress import Progress

from pyttc.engine import Engine, Paths

from . import common, models, table
from .run import failure

DTYPE = torch.bfloat16
PATHS, PROMPTS = (1, 8, 32, 64), (128, 1024, 4096)
QUICK = [(1, 128), (64, 128), (32, 4096)]
TURN, ROUNDS = 4, 2  # tokens of generate a turn, and the fewest turns that are measured
PEER, FREE = f"transformers {transformers.__version__} generate", "batch_invariant=False"


class Turns(transformers.StoppingCriteria):  # type: ignore[misc]
    """Called by generate after each token: times its steps, and gives the engines their turns."""

    def __init__(self, ours: dict[str, Paths], seconds: float) -> None:
        self.ours, self.now = ours, common.clock()
        self.samples: dict[str, list[float]] = {name: [] for name in (*ours, PEER)}
        self.end, self.step, self.mark = time.perf_counter() + seconds, -TURN, 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if self.step > 0:  # what comes before warms up
            self.samples[PEER].append(self.now() - self.mark)
        self.step += 1
        if self.step % TURN == 0:
            for name, paths in self.ours.items():
                start = self.now()
                paths.decode(max_new_tokens=models.TOKENS, progress=False)
                if self.step > 0:
                    self.samples[name].append((self.now() - start) / models.TOKENS)
        over = self.step >= ROUNDS * TURN and time.perf_counter() > self.end
        self.mark = self.now()
        return torch.full(input_ids.shape[:1], over, dtype=torch.bool)


@torch.inference_mode()
def prompt_cache(model: Any, prompt: list[int]) -> Any:
    """transformers' cache of all but the last token of a prompt, one row."""
    cache = transformers.DynamicCache(config=model.config)
    ids = torch.tensor([prompt[:-1]])
    for at in range(0, ids.shape[1], 512):
        model(ids[:, at : at + 512], past_key_values=cache, logits_to_keep=1)
    return cache


def same_logits(engine: Engine, root: Paths, model: Any, cache: Any, prompt: list[int]) -> bool:
    """Whether both see the same next token's logits, up to bfloat16: each is about 0.02 of their spread away
    from float32, and the worst of 152 thousand five times that."""
    with torch.inference_mode():
        held = copy.deepcopy(cache)
        theirs = model(torch.tensor([prompt[-1:]]), past_key_values=held).logits[0, -1].float()
    ours = engine.model.logits(root.hidden())[0].float()
    return bool((ours - theirs).square().mean().sqrt() < 0.05 * theirs.std())


def points(name: str, seconds: float, quick: bool) -> Iterator[dict[str, Any]]:
    """A row for each point of the grid, without what `common.row` adds."""
    engines = {
        "pyttc": models.engine(name, DTYPE, "2GiB"),
        FREE: models.engine(name, DTYPE, "2GiB", batch_invariant=False),
    }
    peer, rng = models.plain(name, DTYPE), np.random.default_rng(0)
    prices = engines["pyttc"].prices
    grid = QUICK if quick else [(n, p) for p in PROMPTS for n in PATHS]
    for length, group in itertools.groupby(grid, key=lambda point: point[1]):
        prompt = rng.integers(0, 32000, length).tolist()
        roots = {name: engine.prefill(prompt) for name, engine in engines.items()}
        cache = prompt_cache(peer, prompt)
        checked = same_logits(engines["pyttc"], roots["pyttc"], peer, cache, prompt)
        for paths, _ in group:
            ours = {name: root.fork(paths, seed=0) for name, root in roots.items()}
            turns = Turns(ours, seconds)
            why = too_large(2 * paths * length * prices.kv_bytes)
            if why:
                while time.perf_counter() < turns.end or turns.step < ROUNDS * TURN:
                    turns(torch.zeros(paths, 1), None)
            else:
                held = copy.deepcopy(cache)
                held.batch_repeat_interleave(paths)
                peer.generate(
                    torch.tensor([prompt]),
                    past_key_values=held,
                    num_return_sequences=paths,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    max_new_tokens=8000 - length,
                    stopping_criteria=[turns],
                )
                del held
            own = turns.step // TURN * models.TOKENS
            yield {
                "op": "engine",
                "shape": {"model": name, "paths": paths, "prompt": length},
                "dtype": str(DTYPE).removeprefix("torch."),
                "checked": checked,
                "why": why,
                "parts": models.step_parts(ours["pyttc"], rounds=2),
                "samples": turns.samples,
                "bytes": prices.weight_bytes + (length + paths * own // 2) * prices.kv_bytes,
                "flops": paths * (prices.body + prices.head + prices.attention * length),
                "kv": int(ours["pyttc"].lengths.sum()) * prices.kv_bytes,
                "kv held": engines["pyttc"].kv_bytes,
            }
            del ours, turns


def too_large(needed: int) -> str | None:
    """Why an expanded cache of so many bytes, with the room to grow it, cannot be held; or None."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10
    if needed <= free:
        return None
    return f"needs {needed >> 20} MiB for its expanded cache, {free >> 20} are free"


def rows(
    name: str, threads: int, seconds: float, quick: bool, progress: Progress
) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    task = progress.add_task(f"threads={threads}", total=3 if quick else len(PATHS) * len(PROMPTS))
    cases, made = [], []
    with common.roof_around(threads) as roof:
        for case in points(name, seconds, quick):
            cases.append(case)
            progress.advance(task)
    for case in cases:
        samples = {name: taken for name, taken in case["samples"].items() if taken}
        took = {name: common.summary(taken) for name, taken in samples.items()}
        paths, ours = case["shape"]["paths"], took["pyttc"].median
        row = common.row({**case, "impl": "engine"}, case["checked"], took, roof(), threads)
        row["tokens_per_second"] = round(paths / ours, 1)
        row["kv_mib"] = round(case["kv held"] / 2**20, 1)
        row["kv_mib_expanded"] = round(case["kv"] / 2**20, 1)
        if case["why"]:
            row["peers"][PEER] = {"median_us": None, "ratio": None, "why": case["why"]}
        whole = sum(case["parts"].values())
        row["parts_percent"] = {p: round(100 * s / whole, 1) for p, s in case["parts"].items()}
        made.append(row)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_engine")
    parser.add_argument("--model", default="125M", choices=models.CONFIGS)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each point")
    parser.add_argument("--quick", action="store_true", help="three points, whose marks count")
    parser.add_argument("--dry-run", action="store_true", help="print rows, keep none")
    args = parser.parse_args()
    found, console = [], Console(stderr=True)
    with Progress(console=console) as progress:
        for threads in sorted({int(n) for n in args.threads.split(",")}):
            found += rows(args.model, threads, args.seconds, args.quick, progress)
    print("\n".join(table.engine_lines(found)))
    wrong = [f"FAILED {row['shape']}: {why}" for row in found if (why := failure(row))]
    print("\n".join(wrong), file=sys.stderr)
    if not args.dry_run:
        path = common.HERE / "rows" / f"{common.device_name()}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found if not failure(row))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
