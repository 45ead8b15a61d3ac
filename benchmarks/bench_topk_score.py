"""topk_score: the top 20 of rows of logits with log-sum-exp and entropy, in one read."""

from collections.abc import Iterator
from typing import Any

import torch

from pyttc import topk_score

from .common import rotating

K = 20


def cases() -> Iterator[dict[str, Any]]:
    for columns in (32_000, 128_256):
        for dtype in (torch.float32, torch.bfloat16):
            for rows in (1, 16, 64):
                yield case(rows, columns, dtype)


def case(
    rows: int = 64, columns: int = 128_256, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    nbytes = rows * columns * dtype.itemsize

    def make() -> torch.Tensor:
        return (2 * torch.randn(rows, columns)).to(dtype)

    def check() -> bool:
        logits = make()
        native, exact = topk_score(logits, K), topk_score(logits.double(), K, impl="reference")
        close = [(native[i] - exact[i]).abs().max() <= 1e-4 for i in (0, 2, 3)]
        return all(close) and torch.equal(native.indices, exact.indices)

    def eager() -> tuple[torch.Tensor, torch.Tensor]:
        return next_logits().float().log_softmax(-1).topk(K)

    def eager_entropy() -> torch.Tensor:
        logprobs = next_logits().float().log_softmax(-1)
        logprobs.topk(K)
        return -(logprobs.exp() * logprobs).sum(-1)

    next_logits = rotating(make, nbytes)
    return {
        "op": "topk_score",
        "shape": {"B": rows, "V": columns, "k": K},
        "dtype": str(dtype).removeprefix("torch."),
        "run": lambda: topk_score(next_logits(), K),
        "check": check,
        "bytes": nbytes + rows * (12 * K + 8),
        "written": rows * (12 * K + 8),
        "flops": rows * columns * 20,
        "peers": {
            "torch log_softmax, topk": eager,
            "torch log_softmax, topk, entropy": eager_entropy,
        },
    }
