"""merge_states: two partial attention results over disjoint sets of keys, as one."""

from __future__ import annotations

import torch

from .. import _C
from ..dispatch import Implementation, register
from . import checks


def merge_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    *,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges two partial attention results over disjoint sets of keys.

    With w_x = exp(lse_x) / (exp(lse_a) + exp(lse_b))::

        out = w_a * out_a + w_b * out_b        lse = log(exp(lse_a) + exp(lse_b))

    Args:
        out_a, out_b: [..., D], the same shape and dtype (float32, bfloat16, float16; float64 with the
            reference); last dimension contiguous, any stride elsewhere.
        lse_a, lse_b: [...], float32 (float64 with float64 outs), natural log of the sum of exp(score).
            -inf says that nothing was attended to; what `out` holds there is then not read.

    Returns:
        (out, lse): like out_a and lse_a. Where both states are empty, out is 0 and lse -inf.

    The operation is commutative to the bit, the empty state is its identity, and it is associative up to
    rounding: where bits matter, merge in a fixed order. An lse that is NaN or +inf makes its row NaN.

    Raises:
        ValueError, TypeError: for an argument of another shape, dtype, stride or device.

    Source: the online softmax of Milakov and Gimelshein (arXiv 1805.02867); as an operation on states,
    Hydragen (arXiv 2402.05099) and FlashInfer's cascade inference.
    """
    out, lse = _op(out_a, lse_a, out_b, lse_b, impl=impl)
    return out, lse


def check(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> None:
    dtype, shape, device = out_a.dtype, out_a.shape, out_a.device
    if not shape:
        checks.fail_shape("out_a", out_a, "at least one dimension, [..., D]")
    if dtype not in checks.FLOATS:
        checks.fail_dtype("out_a", out_a, checks.FLOAT_NAMES)
    if out_b.dtype is not dtype:
        checks.fail_dtype("out_b", out_b, f"{dtype}, as out_a")
    if out_b.shape != shape:
        checks.fail_shape("out_b", out_b, f"{list(shape)}, as out_a")
    state_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    if lse_a.dtype is not state_dtype:
        checks.fail_dtype("lse_a", lse_a, f"{state_dtype}")
    if lse_b.dtype is not state_dtype:
        checks.fail_dtype("lse_b", lse_b, f"{state_dtype}")
    states = shape[:-1]
    if lse_a.shape != states:
        checks.fail_shape("lse_a", lse_a, f"{list(states)}, out_a's without the last")
    if lse_b.shape != states:
        checks.fail_shape("lse_b", lse_b, f"{list(states)}, out_a's without the last")
    if not device == out_b.device == lse_a.device == lse_b.device:
        checks.fail_device(device, out_b=out_b, lse_a=lse_a, lse_b=lse_b)
    if shape[-1] > 1 and (out_a.stride(-1) != 1 or out_b.stride(-1) != 1):
        checks.fail_stride(out_a=out_a, out_b=out_b)


def fake(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return out_a.new_empty(out_a.shape), lse_a.new_empty(lse_a.shape)


def reference(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    lse = torch.logaddexp(lse_a, lse_b)
    lse.masked_fill_(lse == torch.inf, torch.nan)
    out = torch.zeros(out_a.shape, dtype=lse.dtype, device=out_a.device)
    for part, part_lse in ((out_a, lse_a), (out_b, lse_b)):
        weight = torch.exp(part_lse - lse).masked_fill(part_lse == -torch.inf, 0).unsqueeze(-1)
        out += torch.where(weight == 0, 0, weight * part.to(lse.dtype))
    return out.to(out_a.dtype), lse


def native(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(out_a, memory_format=torch.contiguous_format)
    lse = torch.empty_like(lse_a, memory_format=torch.contiguous_format)
    _C.merge_states(out_a, lse_a, out_b, lse_b, out, lse, torch.get_num_threads())
    return out, lse


_op = register(
    "merge_states(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b, *, str? impl=None)"
    " -> (Tensor, Tensor)",
    check=check,
    fake=fake,
    impls={
        "reference": Implementation(reference, device=None),
        "native": Implementation(native, device="cpu"),
    },
).default
