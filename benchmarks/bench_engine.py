"""Tokens per second of N paths from one prompt: the engine beside transformers' generate.

A 125M Llama-shaped model with random weights; both sample at temperature 1 and never end by
themselves. The prompt's pass is left out on both sides.
Run: python -m benchmarks.bench_engine [--threads 1] [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers

from pyttc.engine import Engine
from pyttc.engine.model import RowModel

PATHS, PROMPTS, NEW = (1, 8, 32, 64), (128, 1024, 4096), 16


def llama_125m(dtype: torch.dtype) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def engine_seconds(engine: Engine, prompt: list[int], paths: int) -> float:
    """Seconds a decoding step, prompt excluded."""
    forks = engine.prefill(prompt).fork(paths, seed=0).decode(max_new_tokens=2)
    start = time.thread_time()
    forks.decode(max_new_tokens=NEW)
    return (time.thread_time() - start) / NEW


def generate_seconds(model: Any, prompt: list[int], paths: int) -> float:
    """The same of generate with num_return_sequences: a long run less a short one."""

    def run(tokens: int) -> float:
        start = time.thread_time()
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=True,
            top_k=0,
            num_return_sequences=paths,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
        return time.thread_time() - start

    run(2)
    return (run(NEW // 2 + 2) - run(2)) / (NEW // 2)


def cases(quick: bool = False) -> Iterator[dict[str, Any]]:
    dtype = torch.bfloat16
    engine = Engine(RowModel(llama_125m(dtype), batch_invariant=True), memory="2GiB")
    free = Engine(RowModel(llama_125m(dtype), batch_invariant=False), memory="2GiB")
    engine.eos = free.eos = []
    peer = llama_125m(dtype)
    rng = np.random.default_rng(0)
    points = [(n, p) for p in PROMPTS for n in PATHS]
    for paths, length in [(1, 128), (64, 128), (32, 4096)] if quick else points:
        prompt = rng.integers(0, 32000, length).tolist()
        ours, theirs = engine_seconds(engine, prompt, paths), generate_seconds(peer, prompt, paths)
        yield {
            "op": "engine",
            "shape": {"paths": paths, "prompt": length},
            "dtype": str(dtype),
            "threads": torch.get_num_threads(),
            "tokens_per_second": paths / ours,
            "transformers": paths / theirs,
            "ratio": theirs / ours,
            "cost of invariance": ours / engine_seconds(free, prompt, paths),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for row in cases(arguments.quick):
        print(row, flush=True)


if __name__ == "__main__":
    main()
