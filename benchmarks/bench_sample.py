"""sample: one draw a row, or many, with top 20, log-probabilities and entropy, plain and filtered."""

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
    yield case(16, 128_256, torch.float32, allowed=0.5)
    yield case(1, 128_256, torch.float32, draws=1024)


def case(
    rows: int = 64,
    columns: int = 128_256,
    dtype: torch.dtype = torch.float32,
    top_k: int = 0,
    top_p: float = 1.0,
    allowed: float = 1.0,
    draws: int = 1,
) -> dict[str, Any]:
    """`allowed` is the share of columns that a bitmask leaves; many `draws` are from one row."""
    if draws > 1 and rows > 1:
        raise ValueError(f"rows: got {rows}, expected 1 for {draws} draws")
    given = {"top_k": (top_k, 0), "top_p": (top_p, 1.0)}
    filters: dict[str, Any] = {name: value for name, (value, off) in given.items() if value != off}
    drawn, nbytes = max(rows, draws), rows * columns * dtype.itemsize
    paths, positions = torch.arange(drawn), torch.zeros(drawn, dtype=torch.int64)
    bits = torch.rand(rows, -(-columns // 32), 32) < allowed
    words = (bits.long() << torch.arange(32)).sum(-1).int().expand(drawn, -1)
    forbidden = ~bits.flatten(1)[:, :columns]

    def make() -> torch.Tensor:
        return (3 * torch.randn(rows, columns)).to(dtype)

    def draw(logits: torch.Tensor, impl: str | None = None, n: int = drawn) -> Any:
        mask = words[:n] if allowed < 1 else None
        call = {"path_ids": paths[:n], "positions": positions[:n], "mask": mask, "topk": TOPK}
        return sample(logits.expand(n, -1), seed=1, impl=impl, **call, **filters)

    def check() -> bool:
        logits, n = make(), min(drawn, max(rows, 64))
        native, exact = draw(logits, n=n), draw(logits.double(), "reference", n)
        same = native.tokens == exact.tokens  # but for draws at a boundary of two columns
        if int((~same).sum()) > n // 50:
            return False
        close = (native.logprobs - exact.logprobs).abs()[same] <= 1e-4
        return bool(close.all()) and torch.equal(native.topk_indices, exact.topk_indices)

    def eager() -> torch.Tensor:
        logprobs = next_logits().float().log_softmax(-1)
        logprobs.topk(TOPK)
        p = logprobs.exp()
        if allowed < 1:
            p[forbidden] = 0
        tokens = p.multinomial(draws, replacement=True)
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
    written = drawn * (12 * TOPK + 8 + 4 * 4 + 1)
    extra = {"allowed": allowed} if allowed < 1 else {"draws": draws} if draws > 1 else {}
    name = "torch log_softmax, sort, mask, multinomial, gather"
    plain = "torch log_softmax, topk, multinomial, gather"
    return {
        "op": "sample",
        "shape": {"B": rows, "V": columns, "topk": TOPK, **filters, **extra},
        "dtype": str(dtype).removeprefix("torch."),
        "run": lambda: draw(next_logits()),
        "check": check,
        "bytes": nbytes + written,
        "written": written,
        "flops": rows * columns * 20,
        "peers": {name: eager_filtered} if filters else {plain: eager},
    }
