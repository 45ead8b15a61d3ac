"""store_kv: new keys and values into their slots of a paged cache, in place."""

from __future__ import annotations

import torch

from .. import _C
from ..dispatch import Implementation, cuda, cuda_module, register, triton
from . import checks


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
    *,
    impl: str | None = None,
) -> None:
    """Writes row n of k and v to slot slots[n] of the pages, in place::

        k_pages[slots[n] // page_size, slots[n] % page_size] = k[n]        (v the same)

    Args:
        k, v: [N, Hkv, D], float32, bfloat16 or float16 (float64 with the reference).
        k_pages, v_pages: [pages, page_size, Hkv, D], the dtype of k. Changed in place; slots that are not
            named keep their bits. They may be interleaved in one tensor, but share no element with
            each other, with k or with v.
        slots: [N], int32 or int64, page * page_size + offset. Row n is left out where slots[n] is -1.

    Any stride in all dimensions but the last of k, v, k_pages and v_pages, which is contiguous. Where
    a slot is named more than once, the last of its rows stays.

    Raises:
        ValueError, TypeError: for an argument of another shape, dtype, stride or device, for a slot below
            -1 or past the last page, and for arguments that share memory. Nothing is written then.
            On a GPU slots and memory are not looked at before the launch: a row whose slot is out of
            range is left out.

    Source: the slot mapping of vLLM's reshape_and_cache (arXiv 2309.06180).
    """
    _op(k, v, k_pages, v_pages, slots, impl=impl)


def check(
    k: torch.Tensor,
    v: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    dtype, shape, device, pool = k.dtype, k.shape, k.device, k_pages.shape
    if len(shape) != 3:
        checks.fail_shape("k", k, "[N, Hkv, D]")
    if dtype not in checks.FLOATS:
        checks.fail_dtype("k", k, checks.FLOAT_NAMES)
    if v.shape != shape:
        checks.fail_shape("v", v, f"{list(shape)}, as k")
    if v.dtype is not dtype:
        checks.fail_dtype("v", v, f"{dtype}, as k")
    if len(pool) != 4 or pool[2] != shape[1] or pool[3] != shape[2]:
        checks.fail_shape("k_pages", k_pages, f"[pages, page_size, {shape[1]}, {shape[2]}]")
    if k_pages.dtype is not dtype:
        checks.fail_dtype("k_pages", k_pages, f"{dtype}, as k")
    if v_pages.shape != pool:
        checks.fail_shape("v_pages", v_pages, f"{list(pool)}, as k_pages")
    if v_pages.dtype is not dtype:
        checks.fail_dtype("v_pages", v_pages, f"{dtype}, as k")
    if slots.dtype not in checks.INTS:
        checks.fail_dtype("slots", slots, "int32 or int64")
    if len(slots.shape) != 1 or slots.shape[0] != shape[0]:
        checks.fail_shape("slots", slots, f"[{shape[0]}], one a row of k")
    if not device == v.device == k_pages.device == v_pages.device == slots.device:
        checks.fail_device(device, v=v, k_pages=k_pages, v_pages=v_pages, slots=slots)
    if shape[2] > 1 and not (
        k.stride(2) == v.stride(2) == k_pages.stride(3) == v_pages.stride(3) == 1
    ):
        checks.fail_stride(k=k, v=v, k_pages=k_pages, v_pages=v_pages)


def fake(
    k: torch.Tensor,
    v: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    return None


def reference(
    k: torch.Tensor,
    v: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    checks.check_apart({"k_pages": k_pages, "v_pages": v_pages}, {"k": k, "v": v})
    page_size = k_pages.shape[1]
    end = k_pages.shape[0] * page_size
    checks.check_range("slots", slots, -1, end, f"-1 or a slot below pages * page_size = {end}")
    by_slot, rows = torch.sort(slots, stable=True)
    last = torch.ones_like(by_slot, dtype=torch.bool)
    last[:-1] = by_slot[:-1] != by_slot[1:]
    last &= by_slot >= 0
    slot, rows = by_slot[last], rows[last]
    k_pages[slot // page_size, slot % page_size] = k[rows]
    v_pages[slot // page_size, slot % page_size] = v[rows]


def native(
    k: torch.Tensor,
    v: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    _C.store_kv(k, v, k_pages, v_pages, slots, torch.get_num_threads())


def run_cuda(
    k: torch.Tensor,
    v: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    table = None  # of each slot's last row; few rows find it without
    if slots.shape[0] > 1024:
        table = slots.new_empty(k_pages.shape[0] * k_pages.shape[1], dtype=torch.int32)
    cuda_module().store_kv(k, v, k_pages, v_pages, slots, table)


_op = register(
    "store_kv(Tensor k, Tensor v, Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor slots, *,"
    " str? impl=None) -> ()",
    check=check,
    fake=fake,
    impls={
        "reference": Implementation(reference, device=None),
        "native": Implementation(native, device="cpu"),
        "triton": triton("store_kv"),
        "cuda": cuda(run_cuda),
    },
).call
