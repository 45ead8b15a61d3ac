"""The 125M-parameter model that the engine is measured with, and what its host part costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import transformers

from pyttc import _C
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
KERNELS = ("linear", "rms_norm", "rotate", "silu_mul", "prefix_tree_attention", "store_kv")
KERNELS += ("copy_pages", "sample")


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


def host_part(dtype: torch.dtype, paths: int, prompt: int, rounds: int = 12) -> tuple[float, float]:
    """(seconds of a decoding step that are neither a matrix product nor a kernel of pyttc, seconds of the
    whole step): Python, the dispatch of torch's operators, bookkeeping.

    They are measured on a hollow model, with the layers and calls of the 125M one and next to nothing to
    compute, and what its products and kernels take is left out. What remains of the element-wise
    operators is counted as host time, so that the figure is rather too high. Both models decode in
    turns; the fastest turn of each, since neighbours on the machine only ever add.
    """
    forks = {
        name: engine(dtype, "256MiB", **changes).prefill([3] * prompt).fork(paths, seed=0)
        for name, changes in (("hollow", HOLLOW), ("whole", {}))
    }
    now, inside, taken = clock(), [0.0], {"hollow": [], "whole": []}

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = now()
            out = function(*args, **kwargs)
            inside[0] += now() - start
            return out

        return call

    def turn(name: str) -> None:
        inside[0], start = 0.0, now()
        forks[name].decode(max_new_tokens=4)
        taken[name].append((now() - start - inside[0]) / 4)

    for done in range(rounds + 1):  # the first warms up
        with contextlib.ExitStack() as patches:
            for name in KERNELS:
                patches.enter_context(mock.patch.object(_C, name, timed(getattr(_C, name))))
            turn("hollow")
        turn("whole")
        if not done:
            taken = {"hollow": [], "whole": []}
    return min(taken["hollow"]), min(taken["whole"])
