"""sample: one draw from each row of logits, with its log-probabilities, filters and all."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import _C
from ..dispatch import Implementation, cuda, cuda_module, register, triton
from .philox import uniforms
from .sampling import (
    Number,
    Whole,
    any_tensor,
    check_numbers,
    check_tensors,
    outputs,
    row_values,
)
from .topk_score import (
    LEAST_TEMPERATURE,
    check_logits,
    cuda_workspace,
    raw_topk,
    row_stats,
    stats_dtype,
)


class Sample(NamedTuple):
    """What `sample` returns; the last two are [B, 0] unless topk > 0."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    processed_logprobs: torch.Tensor
    log_kept_mass: torch.Tensor
    entropy: torch.Tensor
    valid: torch.Tensor
    topk_logprobs: torch.Tensor
    topk_indices: torch.Tensor


def sample(
    logits: torch.Tensor,
    *,
    seed: Whole,
    path_ids: torch.Tensor,
    positions: torch.Tensor,
    temperature: Number = 1.0,
    top_k: Whole = 0,
    top_p: Number = 1.0,
    min_p: Number = 0.0,
    mask: torch.Tensor | None = None,
    topk: int = 0,
    impl: str | None = None,
) -> Sample:
    """Draws one token from each row of logits and says how likely it was.

    Let p = softmax(logits / temperature) over the whole row. Of its columns are kept, in turn::

        mask     those whose bit is set
        top_k    of these, the best top_k
        top_p    of these, the shortest run of the best with top_p times their mass or more
        min_p    of these, those with p >= min_p times the largest kept p

    "Best" is the order (logit descending, index ascending), so ties always go to the lowest index.
    The token is the first kept column, in order of index, whose cumulative p exceeds u times the
    kept mass, where u is uniform on [0, 1): Philox4x32-10 with key `seed` and counter (path id,
    position, 0, 0), a function of the path alone and not of the batch. A column of probability 0 is
    never drawn.

    Args:
        logits: [B, V], float32, bfloat16 or float16 (float64 with the reference); last dimension
            contiguous, any row stride. V >= 1. Rows equal to the row before them, with equal
            parameters, share its scan: N draws from one row are `logits.expand(N, V)`.
        seed: 0 <= seed < 2**63.
        path_ids, positions: [B], int32 or int64, each in [0, 2**32).
        temperature: finite and >= 0. 0 takes the best allowed column, p being that of temperature 1.
        top_k: off when <= 0 or >= V.
        top_p: in [0, 1]; 1 is off, 0 keeps the best column.
        min_p: in [0, 1]; 0 is off.
        mask: [B, ceil(V / 32)] int32, column c is bit c % 32 of word c // 32, set where the column
            is allowed (as xgrammar writes it); bits past V are ignored. Last dimension contiguous.
        topk: how many of the row's best columns, unfiltered, to return: 0 <= topk <= min(V, 1024).

        seed, temperature, top_k, top_p and min_p are numbers, or tensors [B] with a value a row
        (int32 or int64 for seed and top_k, float32 or float64 for the others).

    Returns:
        Sample, with float32 statistics (float64 for float64 logits), natural logs, nats:
        tokens [B] int64; logprobs [B] log p[token]; processed_logprobs [B] its logarithm after the
        filters, renormalised; log_kept_mass [B] the log of the mass they kept, so that
        logprobs = processed_logprobs + log_kept_mass; entropy [B] of p; valid [B] bool;
        topk_logprobs and topk_indices [B, topk] as `topk_score` gives them.
        A row with NaN or +inf, or with nothing above -inf: token -1, valid False, logprobs,
        processed_logprobs and log_kept_mass -inf, entropy 0, topk -inf and -1. A row where the mask
        leaves nothing: the same, but entropy and topk are those of the row. Rows never touch each
        other.

    Raises:
        ValueError, TypeError: for an argument of another shape, dtype, stride, device or range.

    Source: inverse transform sampling; filters in the order of vLLM's and Hugging Face's samplers.
    """
    values = (seed, temperature, top_k, top_p, min_p)
    op = _op
    if any_tensor(values):
        op = _op_rows
        seed, temperature, top_k, top_p, min_p = row_values(values, "logits", logits)
    out = op(
        logits, seed, path_ids, positions, temperature, top_k, top_p, min_p, mask, topk, impl=impl
    )
    return Sample(*out)


def check(logits: torch.Tensor, *parameters: Any) -> None:
    check_logits(logits)
    rows, columns = logits.shape
    check_numbers(rows, columns, logits.device, *parameters)


def check_rows(logits: torch.Tensor, *parameters: Any) -> None:
    check_logits(logits)
    rows, columns = logits.shape
    check_tensors(rows, columns, logits.device, *parameters)


def fake(
    logits: torch.Tensor,
    seed: Any,
    path_ids: torch.Tensor,
    positions: torch.Tensor,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    mask: torch.Tensor | None = None,
    topk: int = 0,
) -> tuple[torch.Tensor, ...]:
    return outputs(logits, topk, stats_dtype(logits))


def _check_values(name: str, values: torch.Tensor, good: torch.Tensor, expected: str) -> None:
    if not good.all():
        at = int((~good).nonzero()[0])
        raise ValueError(f"{name}: element {at} is {values[at].item()}, expected {expected}")


def unpack_mask(mask: torch.Tensor, columns: int) -> torch.Tensor:
    """The bitmask [B, ceil(V / 32)] as bool [B, V]."""
    bit = torch.arange(32, device=mask.device)
    return (mask[:, :, None] >> bit & 1).bool().flatten(1)[:, :columns]


def keep(
    x: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> torch.Tensor:
    """Which columns the filters keep. x float64 [B, V], -inf where masked; parameters [B]."""
    columns = x.shape[1]
    best, indices = x.sort(dim=-1, descending=True, stable=True)
    e = ((best - best[:, :1]) / temperature[:, None]).exp()
    e = e.masked_fill(best == -torch.inf, 0)
    rank = torch.arange(columns, device=x.device)
    limit = torch.where(top_k > 0, top_k, columns)[:, None]
    e = e.masked_fill(rank >= limit, 0)
    cumulative = e.cumsum(-1)
    before = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative[:, :-1]], -1)
    short = before < top_p[:, None] * cumulative[:, -1:]
    kept = (e > 0) & ((top_p >= 1)[:, None] | short | (rank == 0)) & (e >= min_p[:, None])
    return torch.zeros_like(kept).scatter(-1, indices, kept)


def reference(
    logits: torch.Tensor,
    seed: Any,
    path_ids: torch.Tensor,
    positions: torch.Tensor,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    mask: torch.Tensor | None = None,
    topk: int = 0,
) -> tuple[torch.Tensor, ...]:
    rows, columns = logits.shape

    def per_row(value: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(value, dtype=dtype, device=logits.device).expand(rows)

    seed, top_k = per_row(seed, torch.int64), per_row(top_k, torch.int64)
    temperature, top_p, min_p = (
        per_row(value, torch.float64) for value in (temperature, top_p, min_p)
    )
    for name, counter in (("path_ids", path_ids.long()), ("positions", positions.long())):
        fits = (counter >= 0) & (counter < 2**32)
        _check_values(name, counter, fits, f"0 <= {name} < 2**32")
    _check_values("seed", seed, seed >= 0, "0 <= seed < 2**63")
    good = (temperature >= 0) & (temperature < torch.inf)
    _check_values("temperature", temperature, good, "a finite number >= 0")
    for name, share in (("top_p", top_p), ("min_p", min_p)):
        _check_values(name, share, (share >= 0) & (share <= 1), f"0 <= {name} <= 1")

    greedy = temperature == 0
    t = temperature.masked_fill(greedy, 1).clamp_min(LEAST_TEMPERATURE)
    raw = row_stats(logits, t)
    x = raw.x
    if mask is not None:
        x = x.masked_fill(~unpack_mask(mask, columns), -torch.inf)
    largest = x.amax(-1)
    valid = ~raw.bad & (largest > -torch.inf)
    x = x.masked_fill(~valid[:, None], 0)
    largest = largest.masked_fill(~valid, 0)
    kept = keep(x, t, top_k.masked_fill(greedy, 1), top_p, min_p)
    weights = ((x - largest[:, None]) / t[:, None]).exp() * kept
    cumulative = weights.cumsum(-1)
    mass = cumulative[:, -1]
    u = uniforms(seed, path_ids.long(), positions.long())
    # u * mass may round up to the mass: then it is the last column with any.
    target = torch.minimum(u * mass, torch.nextafter(mass, torch.zeros_like(mass)))
    tokens = (cumulative <= target[:, None]).sum(-1, keepdim=True)
    logprobs = (x.gather(-1, tokens).squeeze(-1) - raw.largest) / t - raw.log_sum
    log_kept = (largest - raw.largest) / t + mass.log() - raw.log_sum
    log_kept = log_kept.masked_fill((kept | (raw.x == -torch.inf)).all(-1), 0).clamp_max(0)
    topk_logprobs, topk_indices = raw_topk(raw, t, topk)
    dtype = stats_dtype(logits)
    numbers = (logprobs, logprobs - log_kept, log_kept)
    return (
        tokens.squeeze(-1).masked_fill(~valid, -1),
        *(number.masked_fill(~valid, -torch.inf).to(dtype) for number in numbers),
        raw.entropy.masked_fill(raw.bad, 0).to(dtype),
        valid,
        topk_logprobs.to(dtype),
        topk_indices,
    )


def native(
    logits: torch.Tensor,
    seed: Any,
    path_ids: torch.Tensor,
    positions: torch.Tensor,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    mask: torch.Tensor | None = None,
    topk: int = 0,
) -> tuple[torch.Tensor, ...]:
    out = outputs(logits, topk, torch.float32)
    values = (seed, path_ids, positions, temperature, top_k, top_p, min_p, mask, topk)
    _C.sample(logits, *values, *out, torch.get_num_threads())
    return out


def run_cuda(
    logits: torch.Tensor,
    seed: Any,
    path_ids: torch.Tensor,
    positions: torch.Tensor,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    mask: torch.Tensor | None = None,
    topk: int = 0,
) -> tuple[torch.Tensor, ...]:
    out = outputs(logits, topk, torch.float32)
    values = (seed, temperature, top_k, top_p, min_p)
    numbers, tensors = (values, ()) if not any_tensor(values) else ((0, 1.0, 0, 1.0, 0.0), values)
    # Draws of one row, which is scanned once.
    one_row = not tensors and logits.stride(0) == 0 and (mask is None or mask.stride(0) == 0)
    scans = (1 if one_row else logits.shape[0]) * (1 if mask is None else 2)
    workspace = cuda_workspace(logits, scans, of_tile=2 * 128)
    cuda_module().sample(
        logits, list(tensors), *numbers, path_ids, positions, mask, topk, workspace, *out
    )
    return out


_IMPLS = {
    "reference": Implementation(reference, device=None),
    "native": Implementation(native, device="cpu"),
    "triton": triton("sample"),
    "cuda": cuda(run_cuda),
}
_RETURNS = f"-> ({', '.join(['Tensor'] * 8)})"
_op = register(
    "sample(Tensor logits, int seed, Tensor path_ids, Tensor positions, float temperature=1.0,"
    " int top_k=0, float top_p=1.0, float min_p=0.0, Tensor? mask=None, int topk=0, *,"
    f" str? impl=None) {_RETURNS}",
    check=check,
    fake=fake,
    impls=_IMPLS,
).call
_op_rows = register(
    "sample.rows(Tensor logits, Tensor seed, Tensor path_ids, Tensor positions, Tensor temperature,"
    " Tensor top_k, Tensor top_p, Tensor min_p, Tensor? mask=None, int topk=0, *,"
    f" str? impl=None) {_RETURNS}",
    check=check_rows,
    fake=fake,
    impls=_IMPLS,
).call
