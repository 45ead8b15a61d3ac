"""CTranslate2's generate_batch with num_hypotheses=N: the prompt but for its last token is a static one,
whose state is cached between requests and copied to the paths. On CPUs it computes in float32 or int8 (its
bfloat16 wants a GPU). Its callback, called for each path at each step, tells the time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
from ctranslate2.converters import TransformersConverter

from . import child


def converted(model: Path) -> Path:
    folder = model.with_name(f"{model.name}-ctranslate2")
    if not folder.exists():
        made = folder.with_name(f"{folder.name}.part")
        TransformersConverter(str(model)).convert(str(made), force=True)
        made.rename(folder)
    return folder


class CTranslate2:
    package = "ctranslate2"

    def __init__(self, model: Path, threads: int, dtype: str) -> None:
        options = {"device": "cpu", "compute_type": dtype, "intra_threads": threads}
        self.generator = ctranslate2.Generator(str(converted(model)), **options)
        config = json.loads((model / "config.json").read_text())
        # keys and values of all query heads in float32, and once more while a step is appended
        self.bytes_of_token = 2 * 8 * config["num_hidden_layers"] * config["hidden_size"]

    def decode(
        self, prompt: list[int], paths: int, steps: int, mark: Callable[[], None]
    ) -> list[list[int]]:
        needed = paths * (len(prompt) + steps) * self.bytes_of_token >> 20
        free = child.memory("MemAvailable", "/proc/meminfo")
        if free and needed > free:
            raise child.Skip(f"needs {needed} MiB for its copies of the cache, {free} are free")

        def after_token(result: Any) -> bool:
            if result.hypothesis_id == paths - 1:
                mark()
            return False

        words = [f"w{token}" for token in prompt]
        [result] = self.generator.generate_batch(
            [words[-1:]],
            static_prompt=words[:-1],
            cache_static_prompt=True,
            include_prompt_in_result=False,
            num_hypotheses=paths,
            sampling_temperature=child.TEMPERATURE,
            sampling_topk=child.TOP_K,
            min_length=1 + steps,
            max_length=1 + steps,
            callback=after_token,
        )
        tokens: list[list[int]] = result.sequences_ids
        return tokens


if __name__ == "__main__":
    child.serve(CTranslate2)
