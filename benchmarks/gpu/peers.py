"""How others would do what the kernels do, on the same tensors. Each function takes a case's inputs and gives
a callable without arguments; what cannot run raises, and the row says why. All of it can be captured in a
CUDA graph."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

import pyttc

from .trees import PAGE_SIZE, Forest

Call = Callable[[], Any]
WORKSPACE = 256 << 20  # bytes, for FlashInfer


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """For shapes of its own each time."""
    return torch.compile(function, dynamic=False)


def eager_and_compiled(function: Callable[..., Any], *more: Any) -> dict[str, Callable[..., Call]]:
    """`function(*inputs, *more)` as it is, and by torch.compile."""
    return {
        "torch eager": lambda *inputs: lambda: function(*inputs, *more),
        "torch.compile": lambda *inputs: lambda: compiled(function)(*inputs, *more),
    }


# --- scoring and drawing


def score(x: torch.Tensor, k: int) -> tuple[torch.Tensor, ...]:
    logprobs = x.float().log_softmax(-1)
    best, indices = logprobs.topk(k)
    return best, indices, -(logprobs.exp() * logprobs).nan_to_num().sum(-1)


def flashinfer_top_k(k: int) -> Callable[..., Call]:
    def make(x: torch.Tensor) -> Call:
        top_k = flashinfer("").top_k
        return lambda: top_k(x, k)

    return make


def exponential_race(p: torch.Tensor) -> torch.Tensor:
    """A draw from each row as engines take it: torch.multinomial waits for the device."""
    return (p / torch.empty_like(p).exponential_()).argmax(-1)


def draw(x: torch.Tensor, ids: torch.Tensor, topk: int, top_k: int, top_p: float) -> Any:
    """A draw, its log-probability and the best columns of the unfiltered row."""
    logprobs = x.float().log_softmax(-1)
    best = logprobs.topk(max(topk, top_k))
    if top_k:
        values = best.values[:, :top_k]
        p = values.softmax(-1)
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)
        tokens = best.indices.gather(1, exponential_race(p)[:, None])
    else:
        tokens = exponential_race(logprobs.exp())[:, None]
    return tokens, logprobs.gather(1, tokens), best.values[:, :topk], best.indices[:, :topk]


def flashinfer_draw(top_k: int, top_p: float) -> Callable[..., Call]:
    """The token only."""

    def make(x: torch.Tensor, ids: torch.Tensor) -> Call:
        sampling = flashinfer("sampling")
        x = x.float().contiguous()
        if top_k:
            return lambda: sampling.top_k_top_p_sampling_from_logits(x, top_k, top_p)
        return lambda: sampling.sampling_from_logits(x)

    return make


def head(hidden: torch.Tensor, weight: torch.Tensor, k: int) -> tuple[torch.Tensor, ...]:
    return score(hidden @ weight.T, k)


# --- beams, keys and values


def beams(scores: torch.Tensor, logprobs: torch.Tensor, *_: torch.Tensor, width: int) -> Any:
    return (scores[:, None] + logprobs).flatten().topk(width)


def merge(a: torch.Tensor, la: torch.Tensor, b: torch.Tensor, lb: torch.Tensor) -> Any:
    lse = torch.logaddexp(la, lb)
    wa, wb = (la - lse).exp()[..., None], (lb - lse).exp()[..., None]
    return (a.float() * wa + b.float() * wb).to(a.dtype), lse


def store(k: torch.Tensor, v: torch.Tensor, ks: torch.Tensor, vs: torch.Tensor, at: Any) -> None:
    ks.flatten(0, 1).index_copy_(0, at, k)
    vs.flatten(0, 1).index_copy_(0, at, v)


def copy(ks: torch.Tensor, vs: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    for pool in (ks, vs):
        pool.index_copy_(1, dst, pool.index_select(1, src))


# --- attention


def expanded(forest: Forest, pages: torch.Tensor) -> torch.Tensor:
    """[paths, Hkv, tokens, D]: each path's own copy."""
    slots = forest.slots().to(pages.device)
    return (
        pages.flatten(0, 1)[slots.flatten()].unflatten(0, slots.shape).transpose(1, 2).contiguous()
    )


def sdpa(forest: Forest) -> Callable[..., Call]:
    """torch's attention over keys and values that every path has for itself."""

    def make(q: torch.Tensor, ks: torch.Tensor, vs: torch.Tensor, _: Any) -> Call:
        k, v = expanded(forest, ks), expanded(forest, vs)
        attend = F.scaled_dot_product_attention
        return lambda: attend(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]

    return make


def flex(forest: Forest) -> Callable[..., Call]:
    """FlexAttention over the prefix, then over the suffixes, and their merge."""

    def make(q: torch.Tensor, ks: torch.Tensor, vs: torch.Tensor, _: Any) -> Call:
        if forest.tree.widths[0] != 1 or len(forest.tree.widths) != 2:
            raise NotImplementedError("a prefix and suffixes only")
        prefix = forest.tree.lengths[0]
        parts = []
        for pages in (ks, vs):
            own = expanded(forest, pages)
            parts.append((own[:1, :, :prefix].contiguous(), own[:, :, prefix:].contiguous()))
        (k0, k1), (v0, v1) = parts

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[Any, Any]:
            over, both = compiled(flex_attention), AuxRequest(lse=True)
            out, more = over(q, k, v, enable_gqa=True, return_aux=both)
            return out, more.lse

        def call() -> torch.Tensor:
            a, la = attend(q.transpose(0, 1)[None], k0, v0)
            b, lb = attend(q[:, :, None], k1, v1)
            of_path = a[0].transpose(0, 1), la[0].transpose(0, 1), b[:, :, 0], lb[:, :, 0]
            out: torch.Tensor = compiled(merge)(*of_path)[0]
            return out

        return call

    return make


def unshared(forest: Forest) -> Callable[..., Call]:
    """The same kernel, plain decoding: every path reads all of its pages itself."""

    def make(q: torch.Tensor, ks: torch.Tensor, vs: torch.Tensor, _: Any) -> Call:
        tree = forest.unshared(q.device)
        return lambda: pyttc.prefix_tree_attention(q, ks, vs, tree)[0]

    return make


def flashinfer(module: str) -> Any:
    return importlib.import_module(f"flashinfer.{module}".rstrip("."))


def whole_pages(forest: Forest) -> list[torch.Tensor]:
    """Of each level, the pages of its nodes; only leaves may end within one."""
    if any(n % PAGE_SIZE for n in forest.tree.lengths[:-1]):
        raise NotImplementedError("levels of whole pages only")
    return [
        pages[: -(-n // PAGE_SIZE)] for pages, n in zip(forest.pages, forest.tokens, strict=True)
    ]


def offsets(counts: list[int], device: Any) -> torch.Tensor:
    return F.pad(torch.tensor(counts).cumsum(0), (1, 0)).int().to(device)


def last_page(tokens: int) -> int:
    return (tokens - 1) % PAGE_SIZE + 1


def shapes(q: torch.Tensor, pages: torch.Tensor) -> dict[str, Any]:
    """What both of FlashInfer's wrappers ask for beside the pages."""
    return {
        "num_qo_heads": q.shape[1],
        "num_kv_heads": pages.shape[2],
        "head_dim": q.shape[2],
        "page_size": PAGE_SIZE,
        "q_data_type": q.dtype,
        "kv_data_type": pages.dtype,
    }


def flashinfer_decode(forest: Forest) -> Callable[..., Call]:
    """FlashInfer's decoding over pages, nothing shared."""

    def make(q: torch.Tensor, ks: torch.Tensor, vs: torch.Tensor, _: Any) -> Call:
        pages, device = whole_pages(forest), q.device
        ids = [torch.cat([pages[i] for i in chain]) for chain in forest.chains.tolist()]
        last = last_page(forest.tree.lengths[-1])
        wrapper = flashinfer("decode").BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(WORKSPACE, dtype=torch.uint8, device=device), "NHD"
        )
        wrapper.plan(
            offsets([len(i) for i in ids], device),
            torch.cat(ids).int().to(device),
            torch.full((len(ids),), last, dtype=torch.int32, device=device),
            **shapes(q, ks),
        )
        return lambda: wrapper.run(q, (ks, vs))

    return make


def flashinfer_cascade(forest: Forest) -> Callable[..., Call]:
    """FlashInfer's attention of several levels."""

    def make(q: torch.Tensor, ks: torch.Tensor, vs: torch.Tensor, _: Any) -> Call:
        pages, device = whole_pages(forest), q.device
        levels = range(len(forest.tree.widths))
        nodes = [forest.chains[:, level].unique().tolist() for level in levels]
        below = [forest.chains[:, level].unique(return_counts=True)[1].tolist() for level in levels]
        wrapper = flashinfer("cascade").MultiLevelCascadeAttentionWrapper(
            len(nodes), torch.empty(WORKSPACE, dtype=torch.uint8, device=device), "NHD"
        )
        wrapper.plan(
            [offsets(counts, device) for counts in below],
            [offsets([len(pages[i]) for i in level], device) for level in nodes],
            [torch.cat([pages[i] for i in level]).int().to(device) for level in nodes],
            [
                torch.full((len(level),), last_page(n), dtype=torch.int32, device=device)
                for level, n in zip(nodes, forest.tree.lengths, strict=True)
            ],
            **shapes(q, ks),
        )
        return lambda: wrapper.run(q, (ks, vs))

    return make


def attention(forest: Forest) -> dict[str, Callable[..., Call]]:
    """Those that need no compilation for each shape."""
    return {
        "torch SDPA, expanded KV": sdpa(forest),
        "pyttc, nothing shared": unshared(forest),
        "FlashInfer decode": flashinfer_decode(forest),
        "FlashInfer cascade": flashinfer_cascade(forest),
    }
