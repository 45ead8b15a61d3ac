"""lm_head_topk: the last product of a decode step, with the top 20 and with a draw."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import linear

from pyttc import lm_head_topk

from .common import rotating

K = 20


def cases() -> Iterator[dict[str, Any]]:
    for columns, hidden in ((32_000, 768), (151_936, 896)):
        for dtype in (torch.float32, torch.bfloat16):
            for rows in (1, 16, 64):
                yield case(rows, columns, hidden, dtype)


def case(
    rows: int = 64, columns: int = 151_936, hidden: int = 896, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    nbytes = (rows + columns) * hidden * dtype.itemsize
    paths = torch.arange(rows)

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        states, weight = torch.randn(rows, hidden), torch.randn(columns, hidden) / hidden**0.5
        return states.to(dtype), weight.to(dtype)

    def check() -> bool:
        states, weight = make()
        native = lm_head_topk(states, weight, K)
        exact = lm_head_topk(states.double(), weight.double(), K, impl="reference")
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
        "shape": {"B": rows, "V": columns, "H": hidden, "k": K},
        "dtype": str(dtype).removeprefix("torch."),
        "run": lambda: lm_head_topk(*next_args(), K),
        "check": check,
        "bytes": nbytes + rows * (12 * K + 8),
        "written": rows * (12 * K + 8),
        "flops": 2 * rows * columns * hidden,
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
