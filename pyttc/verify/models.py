"""One small model end to end: a path's tokens depend on its prompt, seed and id alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch

from . import Found

TOKENS = 24


def random_llama(folder: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def sharing(device: str) -> Callable[[], Found]:
    def run() -> Found:
        import pyttc

        with tempfile.TemporaryDirectory() as folder:
            random_llama(folder)
            engine = pyttc.Engine.from_pretrained(folder, device=device, memory="64MiB")
        prompts = torch.randint(
            0, 512, (2, 300), generator=torch.Generator().manual_seed(1)
        ).tolist()

        def write(paths: Any) -> list[list[int]]:
            paths.decode(max_new_tokens=TOKENS, temperature=1.0)
            return [row[-TOKENS:] for row in paths.tokens.tolist()]

        every = write(engine.prefill(prompts[0]).fork(32, seed=4))
        alone = write(engine.prefill(prompts[0], salt=None).fork(1, seed=4, start=5))
        few = write(engine.prefill(prompts[0]).fork(8, seed=4))
        both = write(engine.prefill(prompts).fork(4, seed=4))
        backwards = write(engine.prefill(prompts[0]).fork(8, seed=4).select(list(range(7, -1, -1))))
        failures = []
        for name, got, expected in (
            ("a path by itself, nothing shared", alone, every[5:6]),
            ("8 of the 32 paths", few, every[:8]),
            ("beside another prompt", both[:4], every[:4]),
            ("in another order", backwards, every[:8][::-1]),
        ):
            if got != expected:
                failures.append(f"{name}: other tokens")
        if len({tuple(row) for row in every}) < 32:
            failures.append("paths that draw differently wrote the same")
        return TOKENS * (1 + 8 + 4 + 8), failures

    return run
