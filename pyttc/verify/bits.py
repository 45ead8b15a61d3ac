"""Bits that must not depend on what is beside a row: each axis is a call done in two ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import pyttc

from . import Found, differ, implementations
from .kernels import DTYPES, normal, whole

ROUNDS = 12


def attention(rng: torch.Generator, dtype: torch.dtype, device: str) -> dict[str, Any]:
    n, heads, d = 6, 2, 64
    kv, own = normal(rng, dtype, 2, 1, 200, heads, d), normal(rng, dtype, 2, 1, n, 50, heads, d)
    tensors = {
        "q": normal(rng, dtype, 1, n, 3 * heads, d),
        "k_prefix": kv[0],
        "v_prefix": kv[1],
        "k_suffix": own[0],
        "v_suffix": own[1],
        "suffix_lens": whole(rng, 51, 1, n),
    }
    return {name: t.to(device) for name, t in tensors.items()}


def picked(call: dict[str, Any], which: list[int]) -> dict[str, Any]:
    paths = ("q", "k_suffix", "v_suffix", "suffix_lens")
    return {name: t[:, which] if name in paths else t for name, t in call.items()}


def drawn(rng: torch.Generator, dtype: torch.dtype, device: str) -> dict[str, Any]:
    logits = normal(rng, dtype, 6, 3000 + int(whole(rng, 3000, 1))).to(device)
    ids = torch.arange(6, device=device)
    return {"logits": logits, "path_ids": ids, "positions": ids + 3}


SAMPLING: dict[str, Any] = {"seed": 5, "topk": 12, "top_k": 40, "top_p": 0.9}


def axes(impl: str, device: str) -> Iterator[tuple[str, Callable[[], Found]]]:
    """The axes that `impl` can be tried on, on `device`."""
    attends = impl in implementations("shared_prefix_attention", device)
    samples = impl in implementations("sample", device)

    def attend(**call: Any) -> list[torch.Tensor]:
        return list(pyttc.shared_prefix_attention(**call, impl=impl))

    def sample(**call: Any) -> list[torch.Tensor]:
        return list(pyttc.sample(**call, **SAMPLING, impl=impl))

    def each(change: Callable[[torch.Generator, torch.dtype], Iterator[Found]]) -> Found:
        compared = 0
        failures: list[str] = []
        for seed in range(ROUNDS):
            rng = torch.Generator().manual_seed(seed)
            for count, wrong in change(rng, DTYPES[seed % 3]):
                compared, failures = compared + count, failures + wrong
        return compared, failures

    def batch_and_order(rng: torch.Generator, dtype: torch.dtype) -> Iterator[Found]:
        which = torch.randperm(6, generator=rng)[: 1 + int(whole(rng, 6, 1))].tolist()
        if attends:
            call = attention(rng, dtype, device)
            yield differ(
                "attention", attend(**picked(call, which)), [t[:, which] for t in attend(**call)]
            )
        if samples:
            call = drawn(rng, dtype, device)
            some = {name: t[which] for name, t in call.items()}
            yield differ("sample", sample(**some), [t[which] for t in sample(**call)])

    def neighbours(rng: torch.Generator, dtype: torch.dtype) -> Iterator[Found]:
        if attends:
            call = attention(rng, dtype, device)
            before = [t[:, 2] for t in attend(**call)]
            for name in ("q", "k_suffix", "v_suffix"):
                call[name][:, [0, 1, 3, 4, 5]] = torch.nan
            yield differ("attention", [t[:, 2] for t in attend(**call)], before)
        if samples:
            call = drawn(rng, dtype, device)
            before = [t[2] for t in sample(**call)]
            call["logits"][[1, 3]] = torch.tensor([torch.nan, torch.inf], dtype=dtype)[:, None].to(
                device
            )
            yield differ("sample", [t[2] for t in sample(**call)], before)

    def strides(rng: torch.Generator, dtype: torch.dtype) -> Iterator[Found]:
        def gaps(t: torch.Tensor) -> torch.Tensor:
            memory = torch.full((*t.shape[:-1], t.shape[-1] + 8), torch.nan, dtype=dtype)
            return memory.to(device)[..., : t.shape[-1]].copy_(t)

        if attends:
            call = attention(rng, dtype, device)
            wide = {name: gaps(t) if t.is_floating_point() else t for name, t in call.items()}
            yield differ("attention", attend(**wide), attend(**call))
        if samples:
            call = drawn(rng, dtype, device)
            yield differ(
                "sample", sample(**{**call, "logits": gaps(call["logits"])}), sample(**call)
            )

    def cut(rng: torch.Generator, dtype: torch.dtype) -> Iterator[Found]:
        """Tokens moved from the prefix to every suffix."""
        call = attention(rng, dtype, device)
        at = int(whole(rng, 201, 1))
        moved = dict(call, k_prefix=call["k_prefix"][:, :at], v_prefix=call["v_prefix"][:, :at])
        for x in "kv":
            head = call[f"{x}_prefix"][:, None, at:].expand(-1, 6, -1, -1, -1)
            moved[f"{x}_suffix"] = torch.cat([head, call[f"{x}_suffix"]], 2)
        moved["suffix_lens"] = call["suffix_lens"] + (200 - at)
        yield differ("attention", attend(**moved), attend(**call))

    def tree(rng: torch.Generator, dtype: torch.dtype) -> Iterator[Found]:
        """The same tokens in pages of another size."""
        call = attention(rng, dtype, device)
        page = (1, 16, 40)[int(whole(rng, 3, 1))]
        lengths = [200, *call["suffix_lens"][0].tolist()]
        counts = [-(-n // page) for n in lengths]
        pools, firsts = [], [sum(counts[:i]) for i in range(len(counts))]
        for x in "kv":
            pool = torch.full((sum(counts) * page, 2, 64), torch.nan, dtype=dtype, device=device)
            parts = [call[f"{x}_prefix"][0], *call[f"{x}_suffix"][0]]
            for first, length, part in zip(firsts, lengths, parts, strict=True):
                pool[first * page : first * page + length] = part[:length]
            pools.append(pool.unflatten(0, (-1, page)))
        pages = [list(range(f, f + c)) for f, c in zip(firsts, counts, strict=True)]
        forest = pyttc.PrefixTree([-1, *[0] * 6], pages, lengths, range(1, 7), page, device=device)
        k, v = pools
        got = pyttc.prefix_tree_attention(call["q"][0], k, v, forest, impl=impl)
        yield differ("attention", got, [t[0] for t in attend(**call)])

    def threads(rng: torch.Generator, dtype: torch.dtype) -> Iterator[Found]:
        call, row, before = (
            attention(rng, dtype, device),
            drawn(rng, dtype, device),
            torch.get_num_threads(),
        )
        try:
            torch.set_num_threads(1)
            one = attend(**call) + sample(**row)
            torch.set_num_threads(3)
            yield differ("three threads", attend(**call) + sample(**row), one)
        finally:
            torch.set_num_threads(before)

    if attends or samples:
        yield "batch and order of rows", lambda: each(batch_and_order)
        yield "what the neighbours hold", lambda: each(neighbours)
        yield "strides", lambda: each(strides)
    if attends:
        yield "where the prefix ends", lambda: each(cut)
        yield "page size, dense or tree", lambda: each(tree)
    if impl == "native":
        yield "threads", lambda: each(threads)
