"""linear: the engine's linear layers, of the 125M model and the head of a 0.5B one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import linear

from pyttc import _C

from .common import rotating


def cases() -> Iterator[dict[str, Any]]:
    for columns, hidden in ((768, 768), (2048, 768), (768, 2048), (151_936, 896)):
        for dtype in (torch.float32, torch.bfloat16):
            for rows in (1, 8, 64):
                yield case(rows, columns, hidden, dtype)


def case(
    rows: int = 64, columns: int = 151_936, hidden: int = 896, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    nbytes = (rows + columns) * hidden * dtype.itemsize

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = torch.randn(rows, hidden), torch.randn(columns, hidden) / hidden**0.5
        return x.to(dtype), weight.to(dtype)

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(rows, columns)
        _C.linear(x, weight, None, out, torch.get_num_threads())
        return out

    def check() -> bool:
        x, weight = make()
        exact = linear(x.double(), weight.double())
        ours, theirs = ((f(x, weight) - exact).square().mean() for f in (run, linear))
        return bool(ours <= 4 * theirs)

    next_args = rotating(make, nbytes)
    return {
        "op": "linear",
        "shape": {"B": rows, "V": columns, "H": hidden},
        "dtype": str(dtype).removeprefix("torch."),
        "run": lambda: run(*next_args()),
        "check": check,
        "bytes": nbytes + rows * columns * dtype.itemsize,
        "written": rows * columns * dtype.itemsize,
        "flops": 2 * rows * columns * hidden,
        "peers": {"torch linear": lambda: linear(*next_args())},
    }
