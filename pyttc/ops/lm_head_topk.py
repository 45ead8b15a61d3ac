"""lm_head_topk: the last product of a language model, scored or sampled without its logits."""

from __future__ import annotations

from inspect import signature
from operator import is_not
from typing import Any, overload

import torch

from .. import _C
from ..dispatch import Implementation, register, triton
from . import checks, sampling
from . import topk_score as scoring
from .sample import Sample
from .sample import reference as sample_reference
from .sampling import Number, Whole
from .topk_score import TopKScore


@overload
def lm_head_topk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    *,
    temperature: float = 1.0,
    impl: str | None = None,
) -> TopKScore: ...
@overload
def lm_head_topk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    *,
    temperature: Number = 1.0,
    seed: Whole,
    path_ids: torch.Tensor,
    positions: torch.Tensor,
    top_k: Whole = 0,
    top_p: Number = 1.0,
    min_p: Number = 0.0,
    mask: torch.Tensor | None = None,
    impl: str | None = None,
) -> Sample: ...


def lm_head_topk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    *,
    temperature: Any = 1.0,
    seed: Any = None,
    path_ids: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    mask: torch.Tensor | None = None,
    impl: str | None = None,
) -> TopKScore | Sample:
    """Scores the rows of logits = hidden @ weight.T, or draws from them, without logits in memory.

    Without path_ids: `topk_score(logits, k, temperature=temperature)`. With path_ids, and then seed
    and positions: `sample(logits, ..., topk=k)`. The logits are sums in float32 of the products of
    the inputs, never rounded to a narrower type.

    Args:
        hidden: [B, H], float32, bfloat16 or float16 (float64 with the reference). H >= 1.
        weight: [V, H], of the same dtype. V >= 1. Both with a contiguous last dimension and any row
            stride.
        k: how many of the best columns to return, at most min(V, 1024): from 1 to score, from 0 to
            draw.
        temperature, seed, path_ids, positions, top_k, top_p, min_p, mask: as in `sample`. Scoring
            takes a temperature that is a number > 0, and none of the others.

    Returns:
        TopKScore without path_ids, Sample with them. A row whose logits hold NaN or +inf is
        invalid, as there; no other row is touched.

    Raises:
        ValueError, TypeError: for an argument of another shape, dtype, stride, device or range.

    The native kernel reads each weight once for all rows and gives, bit for bit, what `topk_score`
    and `sample` give on its own logits, whatever the batch, strides and threads. Rows whose filters
    reach past the columns looked at (top_p or min_p that keep more than 128, top_k above 1024) have
    their logits computed again. What it holds beside its inputs is 1/32 of the float32 logits,
    1/16 with a mask.

    Source: the fusion of FlashSampling (arXiv 2603.15854), here with all statistics of the row.
    """
    if path_ids is None:
        unused = (seed, positions, top_k, top_p, min_p, mask)
        if any(map(is_not, unused, _UNUSED.values())):
            _check_unused(unused)
        return TopKScore(*_score(hidden, weight, k, temperature, impl=impl))
    if seed is None:
        checks.fail("seed", None, "a number or a tensor [B], with path_ids")
    if positions is None:
        checks.fail("positions", None, "a tensor [B], with path_ids")
    values = (seed, temperature, top_k, top_p, min_p)
    draw = _draw
    if sampling.any_tensor(values):
        draw = _draw_rows
        seed, temperature, top_k, top_p, min_p = sampling.row_values(values, "hidden", hidden)
    parameters = (seed, path_ids, positions, temperature, top_k, top_p, min_p, mask, k)
    return Sample(*draw(hidden, weight, *parameters, impl=impl))


_UNUSED = {
    name: parameter.default
    for name, parameter in signature(lm_head_topk).parameters.items()
    if name in ("seed", "positions", "top_k", "top_p", "min_p", "mask")
}


def _check_unused(given: tuple[Any, ...]) -> None:
    for (name, default), value in zip(_UNUSED.items(), given, strict=True):
        if isinstance(value, torch.Tensor) or value != default:
            checks.fail(name, "a value", "none: nothing is drawn without path_ids")


def check_head(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    if hidden.dim() != 2:
        checks.fail_shape("hidden", hidden, "two dimensions, [B, H]")
    if weight.dim() != 2:
        checks.fail_shape("weight", weight, "two dimensions, [V, H]")
    dtype, width = hidden.dtype, hidden.shape[1]
    if dtype not in checks.FLOATS:
        checks.fail_dtype("hidden", hidden, checks.FLOAT_NAMES)
    if weight.dtype is not dtype:
        checks.fail_dtype("weight", weight, f"{dtype}, as hidden")
    if width < 1:
        checks.fail_shape("hidden", hidden, "at least one column")
    if weight.shape[1] != width:
        checks.fail_shape("weight", weight, f"[V, {width}], with the columns of hidden")
    if weight.shape[0] < 1:
        checks.fail_shape("weight", weight, "at least one row")
    if weight.device != hidden.device:
        checks.fail_device(hidden.device, weight=weight)
    if width > 1 and (hidden.stride(1) != 1 or weight.stride(1) != 1):
        checks.fail_stride(hidden=hidden, weight=weight)


def product(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    dtype = scoring.stats_dtype(hidden)
    return hidden.to(dtype) @ weight.to(dtype).T


# Scoring.


def check(hidden: torch.Tensor, weight: torch.Tensor, k: int, temperature: float = 1.0) -> None:
    check_head(hidden, weight)
    scoring.check_numbers(weight.shape[0], k, temperature)


def fake(
    hidden: torch.Tensor, weight: torch.Tensor, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return scoring.outputs(hidden, k, scoring.stats_dtype(hidden))


def reference(
    hidden: torch.Tensor, weight: torch.Tensor, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return scoring.reference(product(hidden, weight), k, temperature)


def native(
    hidden: torch.Tensor, weight: torch.Tensor, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    out = scoring.outputs(hidden, k, torch.float32)
    _C.lm_head_topk(hidden, weight, k, temperature, *out, torch.get_num_threads())
    return out


# Drawing: `parameters` are those of `sample` after the logits, every one given.


def check_best(k: int, columns: int) -> None:
    if not 0 <= k <= scoring.MAX_K or k > columns:
        checks.fail("k", k, f"0 <= k <= min(V, {scoring.MAX_K}) with V = {columns}")


def check_draw(hidden: torch.Tensor, weight: torch.Tensor, *parameters: Any) -> None:
    check_head(hidden, weight)
    check_best(parameters[-1], weight.shape[0])
    sampling.check_numbers(hidden.shape[0], weight.shape[0], hidden.device, *parameters)


def check_draw_rows(hidden: torch.Tensor, weight: torch.Tensor, *parameters: Any) -> None:
    check_head(hidden, weight)
    check_best(parameters[-1], weight.shape[0])
    sampling.check_tensors(hidden.shape[0], weight.shape[0], hidden.device, *parameters)


def fake_draw(
    hidden: torch.Tensor, weight: torch.Tensor, *parameters: Any
) -> tuple[torch.Tensor, ...]:
    return sampling.outputs(hidden, parameters[-1], scoring.stats_dtype(hidden))


def reference_draw(
    hidden: torch.Tensor, weight: torch.Tensor, *parameters: Any
) -> tuple[torch.Tensor, ...]:
    return sample_reference(product(hidden, weight), *parameters)


def native_draw(
    hidden: torch.Tensor, weight: torch.Tensor, *parameters: Any
) -> tuple[torch.Tensor, ...]:
    out = sampling.outputs(hidden, parameters[-1], torch.float32)
    _C.lm_head_topk_sample(hidden, weight, *parameters, *out, torch.get_num_threads())
    return out


_score = register(
    "lm_head_topk(Tensor hidden, Tensor weight, int k, float temperature=1.0, *, str? impl=None)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    check=check,
    fake=fake,
    impls={
        "reference": Implementation(reference, device=None),
        "native": Implementation(native, device="cpu"),
        "triton": triton("lm_head_topk"),
    },
).call
_DRAW_IMPLS = {
    "reference": Implementation(reference_draw, device=None),
    "native": Implementation(native_draw, device="cpu"),
    "triton": triton("lm_head_topk", "launch_draw"),
}
_RETURNS = f"-> ({', '.join(['Tensor'] * 8)})"
_draw = register(
    "lm_head_topk.sample(Tensor hidden, Tensor weight, int seed, Tensor path_ids, Tensor positions,"
    " float temperature, int top_k, float top_p, float min_p, Tensor? mask, int k, *,"
    f" str? impl=None) {_RETURNS}",
    check=check_draw,
    fake=fake_draw,
    impls=_DRAW_IMPLS,
).call
_draw_rows = register(
    "lm_head_topk.sample_rows(Tensor hidden, Tensor weight, Tensor seed, Tensor path_ids,"
    " Tensor positions, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor? mask,"
    f" int k, *, str? impl=None) {_RETURNS}",
    check=check_draw_rows,
    fake=fake_draw,
    impls=_DRAW_IMPLS,
).call
