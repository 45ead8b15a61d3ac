"""The models that the engine is measured with, of random weights, and where its time goes."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import tokenizers
import torch
import transformers

from pyttc import _C
from pyttc.engine import Engine, Paths

# Shapes of a small Llama and of Qwen2.5-0.5B.
CONFIGS: dict[str, transformers.PreTrainedConfig] = {
    "125M": transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=8192,
    ),
    "0.5B": transformers.Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}
PARTS = {
    "linear": "matrix products",
    "copy_pages": "attention",
    "sample": "drawing",
}
# As llama_pass and llama_steps give them.
PASS_PARTS = ("matrix products", "attention", "other layers", "drawing")
TOKENS = 16  # a turn


def plain(name: str, dtype: torch.dtype) -> Any:
    """One of CONFIGS as transformers makes it."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])  # a model changes its own
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def words(count: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of so many made-up words, for engines that do not start without one."""
    vocabulary = {f"w{index}": index for index in range(count)}
    named = {"unk_token": "w0", "bos_token": "w1", "eos_token": "w2"}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, named["unk_token"]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named)


def engine(name: str, dtype: torch.dtype, memory: str, batch_invariant: bool = True) -> Engine:
    """An engine for it, whose paths never end by themselves."""
    made = Engine.from_model(plain(name, dtype), memory=memory, batch_invariant=batch_invariant)
    made.eos = []
    return made


def step_parts(paths: Paths, rounds: int = 6) -> dict[str, float]:
    """Seconds of a decoding step by what they go to: those of PARTS, and "host", all the rest: Python, the
    dispatch and the work of torch's operators, bookkeeping. Of several turns the fastest, since neighbours on
    the machine only ever add."""
    now, turns = time.perf_counter, []  # the clock of the passes
    inside: dict[str, float] = {}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = now()
            out = function(*args)
            inside[part] += now() - start
            return out

        return call

    def spent(seconds: tuple[float, ...]) -> None:
        for part, each in zip(PASS_PARTS, seconds, strict=True):
            inside[part] += each

    def layers(*args: Any, run: Callable[..., Any] = _C.llama_pass) -> None:
        spent(run(*args))

    def steps(*args: Any, run: Callable[..., Any] = _C.llama_steps, **named: Any) -> Any:
        done = run(*args, **named)
        spent(done[1])
        return done

    with contextlib.ExitStack() as patches:
        for name, part in PARTS.items():
            kernel = timed(part, getattr(_C, name))
            patches.enter_context(mock.patch.object(_C, name, kernel))
        patches.enter_context(mock.patch.object(_C, "llama_pass", layers))
        patches.enter_context(mock.patch.object(_C, "llama_steps", steps))
        for _ in range(rounds + 1):
            inside.update(dict.fromkeys((*PASS_PARTS, *PARTS.values()), 0.0))
            start = now()
            paths.decode(max_new_tokens=TOKENS, progress=False)
            whole = now() - start
            turns.append({**inside, "host": whole - sum(inside.values())})
    fastest = min(turns[1:], key=lambda turn: sum(turn.values()))  # the first warms up
    return {part: seconds / TOKENS for part, seconds in fastest.items()}
