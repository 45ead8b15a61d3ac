"""pyttc's engine: one prefill, kept; a fork of N paths, decoded together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from pyttc import Engine

from . import child


class Pyttc:
    package = "pyttc"

    def __init__(self, model: Path, threads: int, dtype: str) -> None:
        torch.set_num_threads(threads)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.engine = Engine.from_model(loaded, memory="2GiB")
        self.engine.eos = []
        self.prompt: list[int] = []

    def decode(
        self, prompt: list[int], paths: int, steps: int, mark: Callable[..., None]
    ) -> list[list[int]]:
        def marked(rows: Any, most: int, draw: Callable[[], Any]) -> Any:
            drawn = draw()
            mark(len(drawn[0]))
            return drawn

        if prompt != self.prompt:
            self.prompt, self.root = prompt, self.engine.prefill(prompt)
        found = self.root.fork(paths, seed=0)
        sampling = {"temperature": child.TEMPERATURE, "top_k": child.TOP_K}
        found.decode(max_new_tokens=1 + steps, source=marked, progress=False, **sampling)
        tokens: list[list[int]] = found.tokens.tolist()
        return tokens


if __name__ == "__main__":
    child.serve(Pyttc)
