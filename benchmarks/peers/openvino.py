"""OpenVINO GenAI's continuous batching: one request with num_return_sequences=N, whose prompt runs once and
is shared by block table; prefix caching keeps it for the next request. The model is converted by
optimum-intel, weights as 16 bits, computed and cached in bfloat16 (its own default caches 8 bits, no faster
on CPUs). Steps are taken one by one, so that each can be timed; the first is the prompt and a draw."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai

from . import child


def converted(model: Path) -> Path:
    folder = model.with_name(f"{model.name}-openvino")
    if not folder.exists():
        made = folder.with_name(f"{folder.name}.part")
        command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino"]
        command += ["--task", "text-generation-with-past", "--weight-format", "fp16"]
        subprocess.run([*command, "-m", str(model), str(made)], check=True)
        made.rename(folder)
    return folder


class OpenVINO:
    package = "openvino-genai"

    def __init__(self, model: Path, threads: int, dtype: str) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2  # GiB
        scheduler.max_num_batched_tokens = 8192  # a whole prompt in one step
        scheduler.enable_prefix_caching = True
        properties = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16",
            "KV_CACHE_PRECISION": "bf16",
        }
        folder = str(converted(model))
        self.pipe = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
        self.requests = count()

    def decode(
        self, prompt: list[int], paths: int, steps: int, mark: Callable[[], None]
    ) -> list[list[int]]:
        config = genai.GenerationConfig(
            do_sample=True,
            temperature=child.TEMPERATURE,
            top_k=child.TOP_K,
            num_return_sequences=paths,
            max_new_tokens=1 + steps,
            ignore_eos=True,
        )
        ids = openvino.Tensor(np.array([prompt], np.int64))
        handle = self.pipe.add_request(next(self.requests), ids, config)
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
            mark()
        return [list(output.generated_ids) for output in handle.read_all()]


if __name__ == "__main__":
    child.serve(OpenVINO)
