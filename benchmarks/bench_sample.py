"""sample: one draw a row with top 20, log-probabilities and entropy, plain and filtered."""

from collections.abc import Iterator
from typing import Any

import torch

from pyttc import sample

from .common import rotating

TOPK = 20


def cases() -> Iterator[dict[str, Any]]:
    for columns in (32_000, 128_256):
        for dtype in (torch.float32, torch.bfloat16):
            for rows in (1, 16, 64):
                yield case(rows, columns, dtype)
    yield case(16, 128_256, torch.float32, top_k=50, top_p=0.95)
    yield case(16, 128_256, torch.float32, top_p=0.95)


def case(
    rows: int = 64,
    columns: int = 128_256,
    dtype: torch.dtype = torch.float32,
    top_k: int = 0,
    top_p: float = 1.0,
) -> dict[str, Any]:
    given = {"top_k": (top_k, 0), "top_p": (top_p, 1.0)}
    filters: dict[str, Any] = {name: value for name, (value, off) in given.items() if value != off}
    nbytes = rows * columns * dtype.itemsize
    paths, positions = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)

    def make() -> torch.Tensor:
        return (3 * torch.randn(rows, columns)).to(dtype)

    def draw(logits: torch.Tensor, impl: str | None = None) -> Any:
        return sample(
            logits, seed=1, path_ids=paths, positions=positions, topk=TOPK, impl=impl, **filters
        )

    def check() -> bool:
        logits = make()
        native, exact = draw(logits), draw(logits.double(), "reference")
        same = native.tokens == exact.tokens  # but for draws at a boundary of two columns
        if int((~same).sum()) > rows // 50:
            return False
        close = (native.logprobs - exact.logprobs).abs()[same] <= 1e-4
        return bool(close.all()) and torch.equal(native.topk_indices, exact.topk_indices)

    def eager() -> torch.Tensor:
        logprobs = next_logits().float().log_softmax(-1)
        logprobs.topk(TOPK)
        tokens = logprobs.exp().multinomial(1)
        return logprobs.gather(1, tokens)

    def eager_filtered() -> torch.Tensor:
        logprobs = next_logits().float().log_softmax(-1)
        best, order = logprobs.sort(-1, descending=True)
        p = best.exp()
        p[p.cumsum(-1) - p > filters.get("top_p", 1.0)] = 0
        if "top_k" in filters:
            p[:, filters["top_k"] :] = 0
        tokens = order.gather(1, p.multinomial(1))
        return logprobs.gather(1, tokens)

    next_logits = rotating(make, nbytes)
    written = rows * (12 * TOPK + 8 + 4 * 4 + 1)
    name = "torch log_softmax, sort, mask, multinomial, gather"
    plain = "torch log_softmax, topk, multinomial, gather"
    return {
        "op": "sample",
        "shape": {"B": rows, "V": columns, "topk": TOPK, **filters},
        "dtype": str(dtype).removeprefix("torch."),
        "run": lambda: draw(next_logits()),
        "check": check,
        "bytes": nbytes + written,
        "written": written,
        "flops": rows * columns * 20,
        "peers": {name: eager_filtered} if filters else {plain: eager},
    }
