"""topk_score: the best k columns of each row of logits, with the row's log-sum-exp and entropy."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .. import _C
from ..dispatch import Implementation, cuda, cuda_module, register, triton
from . import checks

MAX_K = 1024
# Below this any two unequal logits are further apart than probabilities reach.
LEAST_TEMPERATURE = 1.5e-250


class TopKScore(NamedTuple):
    """What `topk_score` returns."""

    logprobs: torch.Tensor
    indices: torch.Tensor
    logsumexp: torch.Tensor
    entropy: torch.Tensor


def topk_score(
    logits: torch.Tensor, k: int, *, temperature: float = 1.0, impl: str | None = None
) -> TopKScore:
    """Scores each row of logits in one read: top-k, log-sum-exp and entropy over the vocabulary.

    With y = logits / temperature and p = softmax(y)::

        logsumexp = log(sum(exp(y)))     entropy = -sum(p * log(p))     logprobs = y - logsumexp

    Args:
        logits: [B, V], float32, bfloat16 or float16 (float64 with the reference); last dimension
            contiguous, any row stride, 0 too. V >= 1. -inf is a column of probability 0.
        k: how many columns, 1 <= k <= min(V, 1024).
        temperature: finite and > 0.

    Returns:
        TopKScore: logprobs [B, k] float32, natural log, in descending order of the logits; indices
        [B, k] int64; logsumexp [B] and entropy [B] float32, in nats. All float64 for float64
        logits.
        Equal logits (-0 and +0 are equal) come in ascending order of index, -inf ones too when
        fewer than k columns are above -inf. A row with NaN or +inf, or with nothing above -inf, has
        indices -1, logprobs and logsumexp -inf, entropy 0. Rows never touch each other.

    Raises:
        ValueError, TypeError: for an argument of another shape, dtype, stride or range.

    The native kernel reads a row once and keeps sums in powers of two, exact at any offset: results
    are bit-identical whatever the batch, strides and threads, and do not depend on k.

    Source: online softmax, Milakov and Gimelshein (arXiv 1805.02867), with integer references.
    """
    return TopKScore(*_op(logits, k, temperature, impl=impl))


def check_logits(logits: torch.Tensor) -> None:
    if logits.dim() != 2:
        checks.fail_shape("logits", logits, "two dimensions, [B, V]")
    if logits.dtype not in checks.FLOATS:
        checks.fail_dtype("logits", logits, checks.FLOAT_NAMES)
    columns = logits.shape[1]
    if columns < 1:
        checks.fail_shape("logits", logits, "at least one column")
    if columns > 1 and logits.stride(1) != 1:
        checks.fail_stride(logits=logits)


def check(logits: torch.Tensor, k: int, temperature: float = 1.0) -> None:
    check_logits(logits)
    check_numbers(logits.shape[1], k, temperature)


def check_numbers(columns: int, k: int, temperature: float = 1.0) -> None:
    if not 1 <= k <= MAX_K or k > columns:
        checks.fail("k", k, f"1 <= k <= min(V, {MAX_K}) with V = {columns}")
    if not 0 < temperature < math.inf:
        checks.fail("temperature", temperature, "a finite number > 0")


def outputs(
    logits: torch.Tensor, k: int, stats: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, new = logits.shape[0], logits.new_empty
    logsumexp = new(rows, dtype=stats)
    return (
        new(rows, k, dtype=stats),
        new(rows, k, dtype=torch.int64),
        logsumexp,
        torch.empty_like(logsumexp),
    )


def stats_dtype(logits: torch.Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype is torch.float64 else torch.float32


def fake(
    logits: torch.Tensor, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return outputs(logits, k, stats_dtype(logits))


class RowStats(NamedTuple):
    """Rows in float64. Bad rows (NaN, +inf, nothing above -inf) hold zeros in `x`."""

    x: torch.Tensor  # [B, V] logits
    bad: torch.Tensor  # [B]
    largest: torch.Tensor  # [B] of x
    log_sum: torch.Tensor  # [B] log(sum(exp((x - largest) / temperature)))
    logsumexp: torch.Tensor
    entropy: torch.Tensor


def row_stats(logits: torch.Tensor, temperature: torch.Tensor) -> RowStats:
    """The whole-vocabulary numbers of each row at its temperature, [B] > 0."""
    x = logits.double()
    highest = x.amax(-1)
    bad = x.isnan().any(-1) | highest.isinf()
    x = x.masked_fill(bad[:, None], 0)
    largest = x.amax(-1)
    t = temperature.clamp_min(LEAST_TEMPERATURE)
    y = (x - largest[:, None]) / t[:, None]
    e = y.exp()
    total = e.sum(-1)
    entropy = total.log() - (e * y.masked_fill(e == 0, 0)).sum(-1) / total
    return RowStats(x, bad, largest, total.log(), largest / t + total.log(), entropy)


def raw_topk(
    rows: RowStats, temperature: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and indices of the best k columns, in float64."""
    best, indices = rows.x.sort(dim=-1, descending=True, stable=True)
    best, indices = best[:, :k], indices[:, :k]
    t = temperature.clamp_min(LEAST_TEMPERATURE)
    logprobs = (best - rows.largest[:, None]) / t[:, None] - rows.log_sum[:, None]
    bad = rows.bad[:, None]
    return logprobs.masked_fill(bad, -torch.inf), indices.masked_fill(bad, -1)


def reference(
    logits: torch.Tensor, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    t = torch.full(logits.shape[:1], temperature, dtype=torch.float64, device=logits.device)
    rows = row_stats(logits, t)
    logprobs, indices = raw_topk(rows, t, k)
    dtype = stats_dtype(logits)
    logsumexp = rows.logsumexp.masked_fill(rows.bad, -torch.inf)
    entropy = rows.entropy.masked_fill(rows.bad, 0)
    return logprobs.to(dtype), indices, logsumexp.to(dtype), entropy.to(dtype)


def native(
    logits: torch.Tensor, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    out = outputs(logits, k, torch.float32)
    _C.topk_score(logits, k, temperature, *out, torch.get_num_threads())
    return out


def cuda_workspace(logits: torch.Tensor, rows: int, of_tile: int = 128) -> torch.Tensor:
    """What the CUDA kernels leave of `rows` rows: 3 words and `of_tile` of its groups' for each tile of 4,096
    columns (row_tiles.cuh)."""
    tiles = -(-logits.shape[1] // 4096)
    return logits.new_empty(rows * tiles * (3 + of_tile), dtype=torch.int32)


def run_cuda(
    logits: torch.Tensor, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    out = outputs(logits, k, torch.float32)
    workspace = cuda_workspace(logits, logits.shape[0])
    cuda_module().topk_score(logits, k, temperature, workspace, *out)
    return out


_op = register(
    "topk_score(Tensor logits, int k, float temperature=1.0, *, str? impl=None)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    check=check,
    fake=fake,
    impls={
        "reference": Implementation(reference, device=None),
        "native": Implementation(native, device="cpu"),
        "triton": triton("topk_score"),
        "cuda": cuda(run_cuda),
    },
).call
