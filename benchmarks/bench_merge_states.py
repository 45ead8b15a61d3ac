"""merge_states: two partial attention results of every head of every path."""

from collections.abc import Iterator
from typing import Any

import torch

from pyttc import merge_states

from .common import rotating

DTYPES = (torch.float32, torch.bfloat16)


def cases() -> Iterator[dict[str, Any]]:
    for n, heads, d in ((64, 14, 64), (1024, 32, 128)):
        for dtype in DTYPES:
            yield case(n, heads, d, dtype)


def case(
    n: int = 64, heads: int = 14, d: int = 64, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    states = n * heads
    row = d * dtype.itemsize + 4

    def make() -> tuple[torch.Tensor, ...]:
        out_a, out_b = torch.randn(2, n, heads, d).to(dtype)
        lse_a, lse_b = torch.randn(2, n, heads) * 4
        return out_a, lse_a, out_b, lse_b

    def check() -> bool:
        args = make()
        out, lse = merge_states(*args)
        exact_out, exact_lse = merge_states(*(t.double() for t in args), impl="reference")
        ulp = torch.finfo(dtype).eps
        return bool(
            ((out.double() - exact_out).abs() <= 2 * ulp * (1 + exact_out.abs())).all()
            and ((lse.double() - exact_lse).abs() <= 1e-6 * (1 + exact_lse.abs())).all()
        )

    next_args = rotating(make, 3 * states * row)
    return {
        "op": "merge_states",
        "shape": {"n": n, "heads": heads, "d": d},
        "dtype": str(dtype).removeprefix("torch."),
        "run": lambda: merge_states(*next_args()),
        "check": check,
        "bytes": 3 * states * row,
        "written": states * row,
        "flops": 3 * states * d,
        "peers": {"torch": lambda: eager(*next_args())},
    }


def eager(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    lse = torch.logaddexp(lse_a, lse_b)
    weight_a, weight_b = (lse_a - lse).exp()[..., None], (lse_b - lse).exp()[..., None]
    return (weight_a * out_a + weight_b * out_b).to(out_a.dtype), lse
