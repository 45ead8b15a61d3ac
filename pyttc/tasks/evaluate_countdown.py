"""Measures a Countdown model: python -m pyttc.tasks.evaluate_countdown DIR --sizes 3 4

Prints one JSON line a size: greedy accuracy, pass@k of sampling at temperature 1 beside random rollouts,
each with a 95 % bootstrap interval over problems, and whether pass@k is at least twice the baseline
wherever that is below 40 %.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from itertools import islice
from math import comb
from pathlib import Path

import numpy as np
import torch

from .checkpoint import load_model
from .countdown import Problem, random_rollouts, test_set
from .countdown_text import example_lines, prompt, verify
from .llama import Llama
from .sampler import sample

ROLLOUTS = 2048


def pass_at(k: int, tries: int, hits: int) -> float:
    """The unbiased estimate of the chance that at least one of k tries hits (Chen et al. 2021)."""
    return 1.0 - comb(tries - hits, k) / comb(tries, k)


def interval(values: Sequence[float], seed: int = 0) -> list[float]:
    """[mean, low, high] in percent: 95 % of the means of 2,000 resamplings of the values."""
    array = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(0, len(array), (2000, len(array)))
    low, high = np.quantile(array[draws].mean(axis=1), (0.025, 0.975))
    return [round(100 * float(x), 1) for x in (array.mean(), low, high)]


def baseline(problems: Sequence[Problem], ks: Sequence[int]) -> dict[int, list[float]]:
    """pass@k of random rollouts."""
    hits = [sum(islice(random_rollouts(p, seed=0), ROLLOUTS)) for p in problems]
    return {k: interval([pass_at(k, ROLLOUTS, h) for h in hits]) for k in ks}


def solved(
    model: Llama, problems: Sequence[Problem], tries: int, *, temperature: float = 1.0, **options: object
) -> list[int]:
    """How many of `tries` texts solve each problem."""
    rows = [problem for problem in problems for _ in range(tries)]
    texts = sample(model, rows, seed=1, temperature=temperature, **options)  # type: ignore[arg-type]
    ok = [verify(prompt(p), text) for p, text in zip(rows, texts, strict=True)]
    return [sum(ok[i : i + tries]) for i in range(0, len(ok), tries)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--tries", type=int, default=64)
    parser.add_argument("--direct", action="store_true", help="without the calculator")
    parser.add_argument("--examples", type=int, default=0, help="solved examples before each prompt")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.folder, torch.bfloat16)
    ks = [k for k in (1, 4, 16, 64, 256) if k <= options.tries]
    for size in options.sizes:
        begin = time.process_time()
        problems = test_set(size, options.problems)
        how = {
            "direct": options.direct,
            "examples": example_lines(options.examples, seed=0, direct=options.direct),
        }
        hits = solved(model, problems, options.tries, **how)
        trained = {k: interval([pass_at(k, options.tries, h) for h in hits]) for k in ks}
        random = baseline(problems, ks)
        row = {
            "model": options.folder.name,
            "numbers": size,
            "problems": options.problems,
            "format": "direct" if options.direct else "calculator",
            "examples": options.examples,
            "greedy": interval(solved(model, problems, 1, temperature=0.0, **how)),
            "pass": trained,
            "random": random,
            "go": all(trained[k][0] >= 2 * random[k][0] for k in ks if random[k][0] < 40),
            "cpu_seconds": round(time.process_time() - begin),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
