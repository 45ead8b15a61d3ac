"""transformers' generate with num_return_sequences=N, given a cache that holds the prompt N times: on its own
it would run the prompt once for each path. The prompt runs once and is kept, as transformers' documentation
of prefix caching does it; copying it N times is not counted as a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from ..bench_engine import prompt_cache, too_large
from . import child


class Generate:
    package = "transformers"

    def __init__(self, model: Path, threads: int, dtype: str) -> None:
        torch.set_num_threads(threads)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.model.generation_config.eos_token_id = None
        self.prompt: list[int] = []

    def decode(
        self, prompt: list[int], paths: int, steps: int, mark: Callable[[], None]
    ) -> list[list[int]]:
        config = self.model.config
        dim = self.model.base_model.layers[0].self_attn.head_dim  # not every config says
        row = 4 * config.num_hidden_layers * config.num_key_value_heads * dim
        if why := too_large(2 * paths * len(prompt) * row):
            raise child.Skip(why)
        if prompt != self.prompt:
            self.prompt, self.cache = prompt, prompt_cache(self.model, prompt)
        held = copy.deepcopy(self.cache)
        held.batch_repeat_interleave(paths)

        def after_step(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            mark()
            return torch.zeros(ids.shape[:1], dtype=torch.bool)

        ids = self.model.generate(
            torch.tensor([prompt]),
            past_key_values=held,
            num_return_sequences=paths,
            do_sample=True,
            temperature=child.TEMPERATURE,
            top_k=child.TOP_K,
            max_new_tokens=1 + steps,
            stopping_criteria=[after_step],
        )
        tokens: list[list[int]] = ids[:, len(prompt) :].tolist()
        return tokens


if __name__ == "__main__":
    child.serve(Generate)
