"""Each op on random inputs, an implementation against the reference in float64.

The bound on an error is twice that of the reference run in the inputs' own dtype, and a few units
in the last place of what is larger than 1; indices and copies must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

import pyttc

Call = tuple[tuple[Any, ...], dict[str, Any]]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDS = 6


def normal(rng: torch.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def whole(rng: torch.Generator, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=rng)


def forest(rng: torch.Generator, paths: int, page_size: int) -> tuple[pyttc.PrefixTree, int]:
    """A root with a few branches and a leaf for each path, some empty; and the pages it needs."""
    branches = 3
    parents = [-1, *[0] * branches, *(1 + whole(rng, branches, paths)).tolist()]
    lengths = whole(rng, 90, len(parents)).tolist()
    counts = [-(-n // page_size) for n in lengths]
    ids = torch.randperm(sum(counts) + 2, generator=rng).tolist()
    pages = [[ids.pop() for _ in range(n)] for n in counts]
    leaves = list(range(1 + branches, len(parents)))
    return pyttc.PrefixTree(parents, pages, lengths, leaves, page_size), sum(counts) + 2


def poisoned_pages(
    rng: torch.Generator, dtype: torch.dtype, tree: pyttc.PrefixTree, pages: int, *inner: int
) -> torch.Tensor:
    """Random where the tree has tokens, NaN elsewhere."""
    pool = torch.full((pages, tree.page_size, *inner), torch.nan, dtype=dtype)
    offsets, ids = tree.page_offsets.tolist(), tree.page_ids.tolist()
    for node, length in enumerate(tree.lengths.tolist()):
        for i, page in enumerate(ids[offsets[node] : offsets[node + 1]]):
            filled = min(tree.page_size, length - i * tree.page_size)
            pool[page, :filled] = normal(rng, dtype, filled, *inner)
    return pool


def call_of(op: str, dtype: torch.dtype, seed: int) -> Call:
    """A random call of `op`."""
    rng = torch.Generator().manual_seed(seed)
    heads, group = [(1, 1), (2, 3), (2, 7)][seed % 3]
    d, n = (16, 64, 72)[seed % 3], 5 + seed
    columns = (1, 300, 5000)[seed % 3] + seed
    logits = normal(rng, dtype, n, columns) * 3
    k, ids = min(20, columns), torch.arange(n)
    draw: dict[str, Any] = {"seed": seed, "path_ids": ids, "positions": ids + 7, "topk": k}
    draw |= [{}, {"top_k": 9, "temperature": 0.7}, {"top_p": 0.8, "min_p": 0.01}][seed % 3]
    if op == "merge_states":
        lse = torch.randn(2, n, heads, generator=rng)
        lse[:, :: 2 + seed % 2] = -torch.inf
        a, b = normal(rng, dtype, 2, n, heads, d)
        return (a, lse[0], b, lse[1]), {}
    if op == "store_kv":
        slots = torch.randperm(40, generator=rng)[:n] - 1
        return (
            *normal(rng, dtype, 2, n, heads, d),
            *normal(rng, dtype, 2, 5, 8, heads, d),
            slots,
        ), {}
    if op == "copy_pages":
        k_pages, v_pages = normal(rng, dtype, 2, 3, 12, 4, heads, d)
        order = torch.randperm(12, generator=rng)
        return (k_pages, v_pages, order[:5], order[3:8]), {}
    if op == "shared_prefix_attention":
        q = normal(rng, dtype, 2, n, heads * group, d)
        kv = normal(rng, dtype, 2, 2, 150, heads, d)
        own = normal(rng, dtype, 2, 2, n, 40, heads, d)
        lens = {"prefix_lens": torch.tensor([150, 0 if seed % 2 else 71])}
        return (q, *kv, *own, whole(rng, 41, 2, n)), lens
    if op == "prefix_tree_attention":
        tree, pages = forest(rng, n, (1, 16, 64)[seed % 3])
        q = normal(rng, dtype, n, heads * group, d)
        pools = [poisoned_pages(rng, dtype, tree, pages, heads, d) for _ in "kv"]
        options: list[dict[str, Any]] = [{}, {"window": 33}, {"softcap": 5.0}]
        return (q, *pools, tree), options[seed % 3]
    if op == "topk_score":
        return (logits, k), {"temperature": 0.8}
    if op == "sample":
        return (logits,), draw
    if op == "lm_head_topk":
        return (normal(rng, dtype, n, 96), normal(rng, dtype, columns, 96), k), {}
    if op == "select_beams":
        scores, logprobs = torch.randn(n, generator=rng), -torch.rand(n, 30, generator=rng)
        return (scores, logprobs.round(decimals=1), whole(rng, 999, n, 30), whole(rng, 3, n), 8), {
            "num_groups": 3
        }
    raise ValueError(f"{op}: no random calls are written for it")


def to(call: Call, device: str) -> Call:
    args, kwargs = tree_map_only(torch.Tensor, lambda t: t.clone().to(device), call)
    moved = [a.to(device) if isinstance(a, pyttc.PrefixTree) else a for a in args]
    return tuple(moved), kwargs


def widened(call: Call) -> Call:
    def widen(t: torch.Tensor) -> torch.Tensor:
        return t.double() if t.is_floating_point() else t.clone()

    return tree_map_only(torch.Tensor, widen, call)  # type: ignore[no-any-return]


def outputs(op: str, call: Call, impl: str) -> list[torch.Tensor]:
    """What a call returns, or what it wrote."""
    args, kwargs = call
    result = getattr(pyttc, op)(*args, **kwargs, impl=impl)
    if result is None:
        return list(args[2:4] if op == "store_kv" else args[:2])
    return [t for t in tree_leaves(tuple(result)) if t is not None]


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest distance; infinite where only one is finite."""
    got, exact = got.double().cpu(), exact.double().cpu()
    same = (got == exact) | (got.isnan() & exact.isnan())
    distance = torch.where(same, 0.0, (got - exact).abs())
    return float(distance.nan_to_num(torch.inf).max()) if distance.numel() else 0.0


def calls(op: str) -> Iterator[tuple[str, Call]]:
    for dtype in (torch.float32,) if op == "select_beams" else DTYPES:
        for seed in range(ROUNDS):
            yield f"{dtype}, call {seed}", call_of(op, dtype, seed)


def against_reference(op: str, impl: str, device: str) -> Callable[[], tuple[int, list[str]]]:
    def run() -> tuple[int, list[str]]:
        compared = 0
        failures: list[str] = []
        for name, call in calls(op):
            got = outputs(op, to(call, device), impl)
            exact = outputs(op, widened(call), "reference")
            plain = outputs(op, to(call, "cpu"), "reference")
            for i, (mine, best, own) in enumerate(zip(got, exact, plain, strict=True)):
                compared += mine.numel()
                bound = 0.0
                if mine.is_floating_point() and op not in ("store_kv", "copy_pages"):
                    finite = best[best.isfinite()].abs()
                    scale = max(1.0, float(finite.max())) if finite.numel() else 0.0
                    bound = 2 * error(own, best) + 4 * torch.finfo(mine.dtype).eps * scale
                if (off := error(mine, best)) > bound:
                    failures.append(f"{name}, output {i}: off by {off:.3g}, at most {bound:.3g}")
        return compared, failures

    return run
