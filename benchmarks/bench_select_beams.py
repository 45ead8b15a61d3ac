"""select_beams: the step of a beam search over many problems, or one with many beams."""

from collections.abc import Iterator
from typing import Any

import torch

from pyttc import select_beams

from .common import rotating


def cases() -> Iterator[dict[str, Any]]:
    for groups, beams, k, width in ((1, 64, 20, 64), (64, 16, 32, 16), (1, 4096, 256, 4096)):
        yield case(groups, beams, k, width)


def case(groups: int = 1, beams: int = 64, k: int = 20, width: int = 64) -> dict[str, Any]:
    rows = groups * beams
    read = rows * (4 * k + 4 + 8)
    written = groups * width * 20

    def make() -> tuple[torch.Tensor, ...]:
        logprobs = torch.randn(rows, k).log_softmax(-1).sort(-1, descending=True).values
        tokens = torch.randint(0, 150_000, (rows, k))
        group = torch.arange(groups).repeat_interleave(beams)
        return torch.randn(rows) * 5 - 20, logprobs, tokens, group

    def check() -> bool:
        args = make()
        native = select_beams(*args, width, num_groups=groups)
        exact = select_beams(*args, width, num_groups=groups, impl="reference")
        return all(torch.equal(a, b) for a, b in zip(native, exact, strict=True))

    def topk() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What a beam search in torch writes; it needs rows in order of group, and ties are loose."""
        scores, logprobs, tokens, _ = next_args()
        best, at = (scores[:, None] + logprobs).view(groups, beams * k).topk(width)
        first = torch.arange(groups)[:, None] * beams
        return at // k + first, tokens.view(groups, -1).gather(1, at), best

    next_args = rotating(make, rows * 12 * k)
    return {
        "op": "select_beams",
        "shape": {"groups": groups, "beams": beams, "k": k, "width": width},
        "dtype": "float32",
        "run": lambda: select_beams(*next_args(), width, num_groups=groups),
        "check": check,
        "bytes": read + written,
        "written": written,
        "flops": rows * k,
        "peers": {"torch add, topk, gather": topk},
    }
