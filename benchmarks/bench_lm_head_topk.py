"""lm_head_topk: the last product of a decode step, with the top 20 and with a draw."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import linear

from pyttc import lm_head_topk

from .common import rotating

K = 20


def cases() -> Iterator[dict[str, Any]]:
    for columns, width in ((32_000, 768), (151_936, 896)):
        for dtype in (torch.float32, torch.bfloat16):
            for rows in (1, 16, 64):
                yield case(rows, columns, width, dtype)


def case(rows: int, columns: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    nbytes = (rows + columns) * width * dtype.itemsize
    paths = torch.arange(rows)

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        hidden, weight = torch.randn(rows, width), torch.randn(columns, width) / width**0.5
        return hidden.to(dtype), weight.to(dtype)

    def check() -> bool:
        hidden, weight = make()
        native = lm_head_topk(hidden, weight, K)
        exact = lm_head_topk(hidden.double(), weight.double(), K, impl="reference")
        return all(
            bool(((a - b).abs() <= 1e-4).all())
            for a, b in zip(native[::2] + native[3:], exact[::2] + exact[3:], strict=True)
        )

    def whole_softmax() -> tuple[torch.Tensor, torch.Tensor]:
        return linear(*next_args()).float().log_softmax(-1).topk(K)

    def least() -> tuple[torch.Tensor, torch.Tensor]:
        """The top k before the normaliser: log_softmax is not written out."""
        logits = linear(*next_args()).float()
        best, indices = logits.topk(K)
        return best - logits.logsumexp(-1, keepdim=True), indices

    next_args = rotating(make, nbytes)
    return {
        "op": "lm_head_topk",
        "shape": {"B": rows, "V": columns, "H": width, "k": K},
        "dtype": str(dtype).removeprefix("torch."),
        "run": lambda: lm_head_topk(*next_args(), K),
        "check": check,
        "bytes": nbytes + rows * (12 * K + 8),
        "written": rows * (12 * K + 8),
        "flops": 2 * rows * columns * width,
        "peers": {
            "torch linear, log_softmax, topk": whole_softmax,
            "torch linear, topk, logsumexp": least,
            "torch linear alone": lambda: linear(*next_args()),
            "lm_head_topk with a draw": lambda: lm_head_topk(
                *next_args(),
                K,
                seed=0,
                path_ids=paths,
                positions=paths,
                temperature=0.8,
                top_p=0.95,
            ),
        },
    }
