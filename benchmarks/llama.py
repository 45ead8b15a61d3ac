"""The 125M-parameter model that the engine is measured with, and what its host part costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import transformers

from pyttc.engine import Engine
from pyttc.engine.model import RowModel

from .common import clock

SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}
# the same modules and calls on tensors so small that arithmetic takes no time
HOLLOW = {"vocab_size": 64, "hidden_size": 192, "intermediate_size": 64, "head_dim": 16}
KERNELS = ("prefix_tree_attention", "store_kv", "copy_pages", "sample")


def llama(dtype: torch.dtype, **changes: Any) -> Any:
    """125M parameters, Llama-shaped, random."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SHAPE, **changes})
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def engine(dtype: torch.dtype, memory: str, batch_invariant: bool = True, **changes: Any) -> Engine:
    """An engine whose paths never end by themselves."""
    made = Engine(RowModel(llama(dtype, **changes), batch_invariant), memory=memory)
    made.eos = []
    return made


def host_seconds(dtype: torch.dtype, paths: int, prompt: int, steps: int = 40) -> float:
    """Seconds of a decoding step that are neither a matrix product nor a kernel of pyttc: Python, the
    dispatch of torch's operators, bookkeeping.

    They are measured on a hollow model, with the layers and calls of the 125M one and next to nothing to
    compute, and what its products and kernels take is left out. What remains of the element-wise
    operators is counted as host time, so that the figure is rather too high. Median of `steps`.
    """
    hollow = engine(dtype, "256MiB", **HOLLOW)
    forks = hollow.prefill([3] * prompt).fork(paths, seed=0).decode(max_new_tokens=4)
    now, inside = clock(), [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = now()
            out = function(*args, **kwargs)
            inside[0] += now() - start
            return out

        return call

    import pyttc._C as native

    places = [(torch.nn.functional, "linear"), *((native, name) for name in KERNELS)]
    patches = [mock.patch.object(at, name, timed(getattr(at, name))) for at, name in places]
    taken = []
    for patch in patches:
        patch.start()
    try:
        for _ in range(steps // 4):
            inside[0], start = 0.0, now()
            forks.decode(max_new_tokens=4)
            taken.append((now() - start - inside[0]) / 4)
    finally:
        for patch in patches:
            patch.stop()
    return statistics.median(taken)
