"""What is measured on a GPU. A case is a dict:

op, shape        what is measured, and for suites of trees which
make             makes one set of inputs
run              run(*inputs, impl=...) is one call
exact            the output that must be the native kernel's, or None for those of floats
bytes, flops     what one call must move and compute
peers            {name: peer(*inputs) gives a callable without arguments}: see peers.py
peer_bytes       what a peer's own inputs take, if more than ours
plan_us          of attention: what the plan of a step costs on the host
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import pyttc
from pyttc.tree_plan import TreePlan, paths_of

from . import peers
from .trees import PAGE_SIZE, SUITES, Forest, Tree

VOCABULARY = 151_936
Case = dict[str, Any]


def logits(rows: int, device: str) -> torch.Tensor:
    return (2 * torch.randn(rows, VOCABULARY, device=device)).bfloat16()


def scoring(device: str) -> Iterator[Case]:
    for rows, k, goal in ((1, 20, 8), (64, 20, 12), (256, 20, 26), (8192, 32, 750)):
        yield {
            "op": "topk_score",
            "shape": {"B": rows, "V": VOCABULARY, "k": k},
            "make": lambda rows=rows: (logits(rows, device),),
            "run": lambda x, impl, k=k: pyttc.topk_score(x, k, impl=impl),
            "exact": ("indices",),
            "goal_us": goal,
            "bytes": 2 * rows * VOCABULARY + rows * (12 * k + 8),
            "peers": {
                **peers.eager_and_compiled(peers.score, k),
                "FlashInfer top_k": peers.flashinfer_top_k(k),
            },
        }


def drawing(device: str) -> Iterator[Case]:
    goals = {1: 8, 64: 12, 256: 26}
    for rows, draws in ((1, 1), (64, 64), (256, 256), (1, 1024)):
        for topk, top_k, top_p in ((0, 0, 1.0), (20, 0, 1.0), (20, 50, 0.95)):

            def run(x: Any, ids: Any, impl: str, given: Any = (topk, top_k, top_p)) -> Any:
                keys = {"seed": 1, "path_ids": ids, "positions": ids, "topk": given[0]}
                return pyttc.sample(x, **keys, top_k=given[1], top_p=given[2], impl=impl)

            filters = {"top_k": top_k, "top_p": top_p} if top_k else {}
            yield {
                "op": "sample",
                "shape": {"rows": rows, "B": draws, "V": VOCABULARY, "topk": topk, **filters},
                "make": lambda rows=rows, n=draws: (
                    logits(rows, device).expand(n, -1),
                    torch.arange(n, device=device),
                ),
                "run": run,
                "exact": ("tokens", "topk_indices"),
                "goal_us": goals.get(draws),
                "bytes": 2 * rows * VOCABULARY + draws * (12 * topk + 25),
                "peers": {
                    **peers.eager_and_compiled(peers.draw, topk, top_k, top_p),
                    "FlashInfer, the token alone": peers.flashinfer_draw(top_k, top_p),
                },
                "peer_bytes": 4 * draws * VOCABULARY,
            }


def heads(device: str) -> Iterator[Case]:
    width, k = 4096, 20
    for rows in (1, 16, 64):

        def make(rows: int = rows) -> tuple[torch.Tensor, ...]:
            hidden = torch.randn(rows, width, device=device).bfloat16()
            return hidden, torch.randn(VOCABULARY, width, device=device).bfloat16() / width**0.5

        yield {
            "op": "lm_head_topk",
            "shape": {"B": rows, "V": VOCABULARY, "H": width, "k": k},
            "make": make,
            "run": lambda x, w, impl: pyttc.lm_head_topk(x, w, k, impl=impl),
            "exact": (),
            "bytes": 2 * VOCABULARY * width + 2 * rows * width + rows * (12 * k + 8),
            "flops": 2 * rows * VOCABULARY * width,
            "peers": peers.eager_and_compiled(peers.head, k),
        }


def beams(device: str) -> Iterator[Case]:
    for rows, k, width in ((1024, 32, 256), (64, 16, 64)):
        yield {
            "op": "select_beams",
            "shape": {"groups": 1, "beams": rows, "k": k, "width": width},
            "make": lambda rows=rows, k=k: (
                torch.randn(rows, device=device),
                torch.randn(rows, k, device=device),
                torch.randint(0, VOCABULARY, (rows, k), device=device),
                torch.zeros(rows, dtype=torch.int64, device=device),
            ),
            "dtype": "float32",
            "run": lambda *a, impl, n=width: pyttc.select_beams(*a, n, num_groups=1, impl=impl),
            "exact": (0, 1, 2),
            "bytes": rows * (12 * k + 12) + width * 20,
            "peers": peers.eager_and_compiled(partial(peers.beams, width=width)),
        }


def merging(device: str) -> Iterator[Case]:
    for rows, d in ((64 * 32, 128), (65536, 128)):

        def make(rows: int = rows, d: int = d) -> tuple[torch.Tensor, ...]:
            a, b = torch.randn(2, rows, d, device=device).bfloat16()
            la, lb = torch.randn(2, rows, device=device)
            return a, la, b, lb

        yield {
            "op": "merge_states",
            "shape": {"rows": rows, "D": d},
            "make": make,
            "run": lambda *a, impl: pyttc.merge_states(*a, impl=impl),
            "exact": (),
            "bytes": rows * (6 * d + 12),
            "peers": peers.eager_and_compiled(peers.merge),
        }


def storing(device: str) -> Iterator[Case]:
    hkv, d = 8, 128
    for rows in (64, 8192):

        def make(rows: int = rows) -> tuple[torch.Tensor, ...]:
            pools = torch.zeros(2, 2 * rows // PAGE_SIZE, PAGE_SIZE, hkv, d, device=device)
            k, v = torch.randn(2, rows, hkv, d, device=device).bfloat16()
            return k, v, *pools.bfloat16(), torch.randperm(2 * rows, device=device)[:rows]

        yield {
            "op": "store_kv",
            "shape": {"rows": rows, "Hkv": hkv, "D": d},
            "make": make,
            "run": lambda *a, impl: (pyttc.store_kv(*a, impl=impl), *a[2:4])[1:],
            "exact": (0, 1),
            "bytes": 8 * rows * hkv * d + 8 * rows,
            "peers": peers.eager_and_compiled(peers.store),
        }


def copying(device: str) -> Iterator[Case]:
    layers, hkv, d = 16, 8, 128
    for pairs in (64, 256):

        def make(pairs: int = pairs) -> tuple[torch.Tensor, ...]:
            shape = (layers, 2 * pairs, PAGE_SIZE, hkv, d)
            pools = [torch.randn(shape, device=device).bfloat16() for _ in range(2)]
            return *pools, *torch.randperm(2 * pairs, device=device).chunk(2)

        yield {
            "op": "copy_pages",
            "shape": {"pairs": pairs, "layers": layers, "page": PAGE_SIZE, "Hkv": hkv, "D": d},
            "make": make,
            "run": lambda *a, impl: (pyttc.copy_pages(*a, impl=impl), *a[:2])[1:],
            "exact": (0, 1),
            "bytes": 8 * layers * pairs * PAGE_SIZE * hkv * d,
            "peers": peers.eager_and_compiled(peers.copy),
        }


def attention(device: str) -> Iterator[Case]:
    for widths, lengths, goal in (
        ((1, 1), (8192, 256), None),
        ((1, 64), (8192, 256), 28),
        ((1, 256), (8192, 256), 88),
        ((1, 4, 16, 512), (1024, 256, 128, 32), 36),
        ((64,), (2048,), None),
    ):
        case = attention_case(Tree(widths, lengths), (32, 8), device)
        case["peers"]["FlexAttention, twice and merge"] = peers.flex(case["forest"])
        yield {**case, "goal_us": goal}


def two_levels(device: str) -> Iterator[Case]:
    """The other attention op, over dense tensors."""
    hq, hkv, d, paths = 32, 8, 128, 64
    for prefix, suffix in ((8192, 256), (1024, 64)):

        def make(prefix: int = prefix, suffix: int = suffix) -> tuple[torch.Tensor, ...]:
            shapes = (paths, hq), (prefix, hkv), (prefix, hkv), (paths, suffix, hkv)
            q, *held = (torch.randn(1, *n, d, device=device) for n in (*shapes, shapes[-1]))
            lens = torch.full((1, paths), suffix, device=device)
            return *(t.bfloat16() for t in (q, *held)), lens

        tokens = prefix + paths * suffix
        yield {
            "op": "shared_prefix_attention",
            "shape": {"N": paths, "P": prefix, "S": suffix, "Hq": hq, "Hkv": hkv, "D": d},
            "make": make,
            "run": pyttc.shared_prefix_attention,
            "exact": (),
            "bytes": 4 * tokens * hkv * d + paths * hq * (4 * d + 4),
            "flops": 4 * paths * hq * (prefix + suffix) * d,
            "peers": {},
        }


def published(name: str, device: str) -> Iterator[Case]:
    for hq, hkv in SUITES[name].heads:
        for tree in SUITES[name].trees:
            case = attention_case(tree, (hq, hkv), device)
            yield {**case, "shape": {"suite": name, **case["shape"]}}


def attention_case(tree: Tree, of_heads: tuple[int, int], device: str, d: int = 128) -> Case:
    forest, (hq, hkv) = Forest(tree), of_heads
    paths, length = forest.chains.shape[0], sum(tree.lengths)
    here = forest.prefix_tree(device)
    grown = forest.prefix_tree("cpu", more=1)

    def make() -> tuple[Any, ...]:
        shape = (forest.pool_pages, PAGE_SIZE, hkv, d)
        pools = [torch.randn(shape, device=device).bfloat16() for _ in range(2)]
        return torch.randn(paths, hq, d, device=device).bfloat16(), *pools, here

    return {
        "op": "prefix_tree_attention",
        "shape": {"widths": tree.widths, "lengths": tree.lengths, "Hq": hq, "Hkv": hkv, "D": d},
        "forest": forest,
        "make": make,
        "run": pyttc.prefix_tree_attention,
        "exact": (),
        "bytes": 4 * sum(forest.tokens) * hkv * d + paths * hq * (4 * d + 4),
        "flops": 4 * paths * hq * length * d,
        "peers": peers.attention(forest),
        "peer_bytes": 4 * paths * length * hkv * d,
        "plan_us": plan_times((here.host(), grown.host()), paths_of(hq // hkv, torch.bfloat16)),
    }


def plan_times(trees: tuple[Any, Any], most_paths: int) -> dict[str, float]:
    """Microseconds of this thread, medians: a plan built, and one that has grown."""
    plan, took = TreePlan(PAGE_SIZE, most_paths, "cpu"), {"built": [], "grown": []}
    other = (*trees[0][:4], torch.full_like(trees[0][4], -1))
    for _ in range(10):
        plan.fill(other)
        for name, tree in zip(took, trees, strict=True):
            start = time.thread_time()
            plan.fill(tree)
            took[name].append(time.thread_time() - start)
    return {name: round(1e6 * statistics.median(times), 1) for name, times in took.items()}


CASES = {
    "topk_score": scoring,
    "sample": drawing,
    "lm_head_topk": heads,
    "select_beams": beams,
    "merge_states": merging,
    "store_kv": storing,
    "copy_pages": copying,
    "shared_prefix_attention": two_levels,
    "prefix_tree_attention": attention,
}
TREES = {name: partial(published, name) for name in SUITES}
