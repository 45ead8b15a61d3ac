"""The same comparisons for kernels wherever they run: in Triton's interpreter, under the host emulation of
CUDA, and on a GPU (tests/interpreted, tests/test_cuda_emulated.py, tests/gpu)."""

from typing import Any

import torch

import pyttc
from pyttc.dispatch import ops

from . import ops as declared
from .common import same, spread
from .kernel_calls import Call, bits, tops
from .test_merge_states import states

EXACT = {"store_kv", "copy_pages", "select_beams"}  # every bit; of the others integers and flags
IN_PLACE = {"store_kv", "copy_pages"}


def moved(values: Any, device: str) -> Any:
    """The call on copies of its tensors; on another device with the same strides."""
    if isinstance(values, torch.Tensor):
        if device == "cpu":
            return values
        there = torch.empty_strided(
            values.shape, values.stride(), dtype=values.dtype, device=device
        )
        once = tuple(slice(None, 1) if stride == 0 else slice(None) for stride in values.stride())
        there[once].copy_(values[once])  # a row that is several rows is written once
        return there
    if isinstance(values, pyttc.PrefixTree):
        return values.to(device)
    if isinstance(values, dict):
        return {key: moved(value, device) for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(moved(value, device) for value in values)
    return values


def widened(values: Any) -> Any:
    if isinstance(values, torch.Tensor) and values.is_floating_point():
        return values.double()
    if isinstance(values, dict):
        return {key: widened(value) for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(widened(value) for value in values)
    return values


def run(name: str, call: Call, impl: str) -> tuple[torch.Tensor, ...]:
    """The op's outputs; of an op in place, what it left in its arguments."""
    args, kwargs = call
    result = getattr(pyttc, name)(*args, **kwargs, impl=impl)
    return tuple(args[:4]) if name in IN_PLACE else tuple(result)


def check(name: str, call: Call, impl: str, device: str = "cpu") -> None:
    """Runs one call with `impl` on `device` and compares it with the reference on the CPU: integers bit for
    bit; floats with at most twice the error of the reference in the call's own dtype, both against
    float64, and a few roundings of float32.
    """
    expected = run(name, declared.fresh(call), "reference")
    got = run(name, moved(declared.fresh(call), device), impl)
    if name in EXACT:
        for g, e in zip(got, expected, strict=True):
            assert same(g.cpu(), e), name
        return
    exact = run(name, widened(call), "reference")
    for g, e, x in zip(got, expected, exact, strict=True):
        g = g.cpu()
        assert g.shape == e.shape and g.dtype == e.dtype
        if not g.is_floating_point():
            assert torch.equal(g, e), (name, g, e)
            continue
        assert torch.equal(g.isfinite(), e.isfinite()), (name, g, e)
        g, e, x = (t.double()[e.isfinite()] for t in (g, e, x))
        if x.numel():
            error, allowed = (g - x).abs().max().item(), (e - x).abs().max().item()
            bound = 2 * allowed + 16 * torch.finfo(torch.float32).eps * max(
                1.0, x.abs().max().item()
            )
            assert error <= bound, (name, error, allowed)


def check_tokens(impl: str, device: str, columns: int) -> None:
    """1,000 rows with every filter: the tokens and top-k of the native kernel. A draw within an ulp of where
    another column begins may fall on its other side."""
    make = torch.Generator().manual_seed(0)
    logits = (torch.randn(1000, columns, generator=make) * 3).bfloat16()
    ids = torch.arange(1000)
    choose = torch.rand(5, 1000, generator=make, dtype=torch.float64)
    parameters = {
        "seed": torch.full((1000,), 9),
        "temperature": (choose[0] * 2).masked_fill_(choose[1] < 0.05, 0),
        "top_k": torch.where(choose[1] < 0.5, 0, (choose[2] * 300).long()),
        "top_p": torch.where(choose[3] < 0.5, 1.0, choose[3]),
        "min_p": torch.where(choose[4] < 0.5, 0.0, choose[4] / 5),
        "path_ids": ids,
        "positions": ids,
        "mask": bits((1000, columns), 0.7),
    }
    parameters["mask"][1] = -1
    here = pyttc.sample(logits, topk=8, **parameters, impl="native")
    there = pyttc.sample(logits.to(device), topk=8, **moved(parameters, device), impl=impl)
    assert torch.equal(there.topk_indices.cpu(), here.topk_indices)
    assert (there.tokens.cpu() != here.tokens).sum() <= 1
    assert here.valid.all()


def check_many_draws(impl: str, device: str) -> None:
    """Draws from one row that has more columns than are looked at first, filtered so that those hold all that
    is kept, or do not: the tokens of the native kernel, but for one within an ulp of a boundary."""
    row = tops("random", (1, 20_000), torch.float32)
    for kwargs in (
        {"temperature": 1.2, "top_k": 1500, "top_p": 0.6},
        {"temperature": 3.0, "top_p": 0.95},
        {"temperature": 3.0, "min_p": 1e-3},
        {"temperature": 0.7, "top_p": 0.9, "min_p": 0.01, "topk": 70},
        {"top_k": 1200, "topk": 1},
        {"top_k": 30, "mask": bits((1, 20_000), 0.3).expand(60, -1)},
    ):
        check_draws(row.expand(60, -1), kwargs, impl, device)
    check_draws(tops("random", (1, 150_000), torch.float32).expand(60, -1), {}, impl, device)


def check_draws(logits: torch.Tensor, kwargs: dict[str, Any], impl: str, device: str) -> None:
    ids = torch.arange(len(logits))
    kwargs = {"seed": 5, "path_ids": ids, "positions": ids + 7, **kwargs}
    here = pyttc.sample(logits, **kwargs, impl="native")
    there = pyttc.sample(*moved((logits,), device), **moved(kwargs, device), impl=impl)
    assert (there.tokens.cpu() != here.tokens).sum() <= 1, kwargs
    assert torch.equal(there.topk_indices.cpu(), here.topk_indices)
    assert torch.allclose(there.log_kept_mass.cpu(), here.log_kept_mass, atol=1e-6)


def check_rows_alone(impl: str, device: str) -> None:
    """A row's bits are those of the row alone, wherever in memory it begins; and the top-k of 100 rows is
    that of the native kernel."""
    for dtype in (torch.float32, torch.bfloat16):
        rows = tops("random", (3, 8992), dtype)
        whole = pyttc.topk_score(rows.to(device), 30, impl=impl)
        for i in range(3):
            apart = torch.empty(8993, dtype=dtype, device=device)[None, 1:]
            alone = pyttc.topk_score(apart.copy_(rows[i]), 30, impl=impl)
            assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, whole, strict=True))
    rows = tops("random", (100, 500), torch.bfloat16)
    found = pyttc.topk_score(rows.to(device), 8, temperature=0.8, impl=impl).indices.cpu()
    assert torch.equal(found, pyttc.topk_score(rows, 8, impl="native").indices)


def check_merged_bits(impl: str, device: str) -> None:
    """Neither where rows lie nor the order of the states shows in the bits."""

    def beside(t: torch.Tensor) -> torch.Tensor:
        return torch.empty(t.numel() + 1, dtype=t.dtype, device=device)[1:].view_as(t).copy_(t)

    for d, dtype in ((64, torch.bfloat16), (80, torch.float16), (24, torch.float32)):
        args = states((5, 7, d), dtype)
        a, lse_a, b, lse_b = moved(args, device)
        whole = pyttc.merge_states(a, lse_a, b, lse_b, impl=impl)
        for other in (
            (b, lse_b, a, lse_a),
            tuple(beside(t) for t in args),
            moved(tuple(spread(t) for t in args), device),
            (a, lse_a, beside(b), lse_b),
        ):
            merged = pyttc.merge_states(*other, impl=impl)
            assert all(same(x.cpu(), y.cpu()) for x, y in zip(merged, whole, strict=True))


def check_stray_slots(impl: str, device: str) -> None:
    """Rows whose slots are out of range are left out, few rows or many."""
    stray = torch.tensor([-(2**63), -(2**32), -2, 60, 2**32 + 3, 2**63 - 1])
    for rows, index in ((50, torch.int32), (50, torch.int64), (1030, torch.int64)):
        make = torch.Generator().manual_seed(rows)
        k, v = torch.randn(2, rows, 1, 8, generator=make).to(device)
        slots = torch.randint(-1, 60, (rows,), generator=make)
        left_out = torch.rand(rows, generator=make) < 0.3
        kept, wild = slots.masked_fill(left_out, -1), torch.where(left_out, stray[slots % 6], slots)
        at = wild.clamp(torch.iinfo(index).min, torch.iinfo(index).max).to(index)
        pages = torch.zeros(2, 12, 5, 1, 8)
        expected, got = pages.clone(), pages.to(device, copy=True)
        pyttc.store_kv(k.cpu(), v.cpu(), *expected, kept, impl="reference")
        pyttc.store_kv(k, v, *got, at.to(device), impl=impl)
        assert same(got.cpu(), expected)


def check_far_pages(impl: str) -> None:
    """A second page that begins 2**31 elements behind the first."""
    memory = torch.empty(2**31 + 64, dtype=torch.float16)  # untouched pages of it take no memory
    far, near = (
        memory.as_strided((2, 1, 1, 16), (2**31, 16, 16, 1)),
        torch.zeros(2, 1, 1, 16).half(),
    )
    one = torch.randn(1, 1, 16).half()
    other = -one[None]
    for pages in ((far, near), (near, far)):
        pyttc.store_kv(one, one.clone(), *pages, torch.tensor([1]), impl=impl)
        assert same(near[1:], one[None]) and same(far[1:], one[None])
        near[:1], far[:1] = other, other
        pyttc.copy_pages(*pages, torch.tensor([0]), torch.tensor([1]), impl=impl)
        assert same(near[1:], other) and same(far[1:], other)


def kernel_ops(impl: str) -> list[str]:
    return sorted(name for name, op in ops.items() if impl in op.impls)
