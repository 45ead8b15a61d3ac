"""Times the kernels of a GPU, each implementation that can run there beside eager torch, and appends rows
to benchmarks/rows/gpu/<device>.jsonl.

    python -m benchmarks.gpu [op ...] [--dry-run]

A sample is one replay of a CUDA graph that holds a call on each of several inputs, together more than
twice the L2 cache, divided by their number. Rows of attention say what the plan of a step costs on the
host beside it: built, and after every path has grown by a token.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import pyttc
from pyttc.tree_plan import TreePlan, paths_of

from . import common

PAGE_SIZE, VOCABULARY = 16, 151_936
Case = dict[str, Any]


def scoring(device: str) -> Iterator[Case]:
    for rows, k in ((1, 20), (64, 20), (256, 20), (8192, 32)):
        yield {
            "op": "topk_score",
            "shape": {"B": rows, "V": VOCABULARY, "k": k},
            "make": lambda rows=rows: (logits(rows, device),),
            "run": lambda x, impl, k=k: pyttc.topk_score(x, k, impl=impl),
            "exact": "indices",  # the output that must be the native kernel's
            "bytes": 2 * rows * VOCABULARY + rows * (12 * k + 8),
            "eager": lambda x, k=k: x.float().log_softmax(-1).topk(k),
        }


def drawing(device: str) -> Iterator[Case]:
    def eager(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return x.float().softmax(-1).multinomial(1)

    for rows, draws in ((1, 1), (64, 64), (256, 256), (1, 1024)):
        for name, kwargs in (("plain", {}), ("filtered", {"top_k": 50, "top_p": 0.95})):

            def run(x: torch.Tensor, ids: torch.Tensor, impl: str, kwargs: Any = kwargs) -> Any:
                keys = {"seed": 1, "path_ids": ids, "positions": ids, "topk": 20}
                return pyttc.sample(x, **keys, **kwargs, impl=impl)

            yield {
                "op": "sample",
                "shape": {"rows": rows, "B": draws, "V": VOCABULARY, "topk": 20, "filters": name},
                "make": lambda rows=rows, n=draws: (
                    logits(rows, device).expand(n, -1),
                    torch.arange(n, device=device),
                ),
                "run": run,
                "exact": "tokens",
                "bytes": 2 * rows * VOCABULARY + draws * (12 * 20 + 25),
                "eager": eager,
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
            "run": lambda *a, impl, n=width: pyttc.select_beams(*a, n, num_groups=1, impl=impl),
            "exact": 0,
            "bytes": rows * (12 * k + 12) + width * 20,
            "eager": lambda s, x, *_, n=width: (s[:, None] + x).flatten().topk(n),
        }


def attention(device: str) -> Iterator[Case]:
    hq, hkv, d = 32, 8, 128
    for widths, lengths in (
        ((1, 1), (8192, 256)),
        ((1, 64), (8192, 256)),
        ((1, 256), (8192, 256)),
        ((1, 4, 16, 512), (1024, 256, 128, 32)),
        ((64,), (2048,)),
    ):
        parents, tokens, above = [], [], [-1]
        for width, length in zip(widths, lengths, strict=True):
            first = len(parents)
            parents += [above[i * len(above) // width] for i in range(width)]
            tokens += [length] * width
            above = list(range(first, first + width))
        counts = [length // PAGE_SIZE + 1 for length in tokens]
        pages = list(torch.randperm(sum(counts)).split(counts))
        tree = pyttc.PrefixTree(parents, pages, tokens, above, PAGE_SIZE, device=device)
        longer = [n + (i in above) for i, n in enumerate(tokens)]
        grown = pyttc.PrefixTree(parents, pages, longer, above, PAGE_SIZE)

        def make(tree: pyttc.PrefixTree = tree, count: int = sum(counts)) -> tuple[Any, ...]:
            pool = torch.randn(2, count, PAGE_SIZE, hkv, d, device=device).bfloat16()
            q = torch.randn(tree.leaves.shape[0], hq, d, device=device).bfloat16()
            return q, *pool, tree

        yield {
            "op": "prefix_tree_attention",
            "shape": {"widths": widths, "lengths": lengths, "Hq": hq, "Hkv": hkv, "D": d},
            "make": make,
            "run": pyttc.prefix_tree_attention,
            "exact": None,
            "bytes": 4 * sum(tokens) * hkv * d + widths[-1] * hq * (4 * d + 4),
            "flops": 4 * widths[-1] * hq * sum(lengths) * d,
            "plan_us": plan_times((tree.host(), grown.host()), paths_of(hq // hkv, torch.bfloat16)),
        }


CASES = {
    "topk_score": scoring,
    "sample": drawing,
    "select_beams": beams,
    "prefix_tree_attention": attention,
}


def logits(rows: int, device: str) -> torch.Tensor:
    return (2 * torch.randn(rows, VOCABULARY, device=device)).bfloat16()


def plan_times(trees: tuple[Any, Any], most_paths: int) -> dict[str, float]:
    """Microseconds of this thread, the least of ten: a plan built, and one that has grown."""
    plan, took = TreePlan(PAGE_SIZE, most_paths, "cpu"), {"built": [], "grown": []}
    other = (*trees[0][:4], torch.full_like(trees[0][4], -1))
    for _ in range(10):
        plan.fill(other)
        for name, tree in zip(took, trees, strict=True):
            start = time.thread_time()
            plan.fill(tree)
            took[name].append(time.thread_time() - start)
    return {name: round(1e6 * min(times), 1) for name, times in took.items()}


def is_right(case: Case, impl: str) -> bool:
    """Against the native kernel on the CPU."""
    args = case["make"]()
    got = case["run"](*args, impl=impl)
    right = case["run"](*(a.to("cpu") for a in args), impl="native")
    if case["exact"] is None:
        return all(torch.allclose(g.cpu(), r, atol=2e-2) for g, r in zip(got, right, strict=True))
    at = case["exact"]
    got, right = ((getattr(x, at) if isinstance(at, str) else x[at]) for x in (got, right))
    # A draw within an ulp of where another column begins may fall on its other side.
    return int((got.cpu() != right).sum()) <= (case["op"] == "sample")


def replayed(calls: list[Callable[[], Any]]) -> common.Timing:
    """Seconds a call, of replays of a graph of all of them."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    samples = []
    for i in range(55):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 5:
            samples.append(start.elapsed_time(end) * 1e-3 / len(calls))
    return common.summary(samples)


def roof() -> dict[str, float]:
    """Bytes and bfloat16 operations a second: of a copy of 1 GiB, of a product of 8192."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b, m = torch.empty_like(a), torch.randn(8192, 8192, device="cuda").bfloat16()
    return {
        "bytes_s": 2 * a.numel() / replayed([lambda: b.copy_(a)]).p20,
        "flops_s": 2 * 8192**3 / replayed([lambda: m @ m]).p20,
    }


def rows_of(case: Case, limits: dict[str, float]) -> Iterator[dict[str, Any]]:
    size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
    inputs = [case["make"]() for _ in range(max(2, min(64, size // case["bytes"] + 1)))]
    least = max(case["bytes"] / limits["bytes_s"], case.get("flops", 0) / limits["flops_s"])
    peers = {}
    if "eager" in case:
        peers["torch eager"] = replayed([lambda x=x: case["eager"](*x) for x in inputs]).median
    for impl in ("cuda", "triton"):
        chosen = pyttc.dispatch.ops[case["op"]].impls.get(impl)
        if chosen is None or chosen.missing:
            continue
        took = replayed([lambda x=x, impl=impl: case["run"](*x, impl=impl) for x in inputs])
        yield {
            "op": case["op"],
            "impl": impl,
            "shape": case["shape"],
            "dtype": "float32" if case["op"] == "select_beams" else "bfloat16",
            "median_us": round(took.median * 1e6, 2),
            "p20_us": round(took.p20 * 1e6, 2),
            "p80_us": round(took.p80 * 1e6, 2),
            "bytes": case["bytes"],
            "flops": case.get("flops", 0),
            "roof_percent": round(100 * least / took.median, 1),
            "checked": is_right(case, impl),
            "peers": {
                name: {"median_us": round(t * 1e6, 2), "ratio": round(t / took.median, 2)}
                for name, t in peers.items()
            },
            "plan_us": case.get("plan_us"),
            "clock": f"CUDA graph of {len(inputs)} inputs",
            "roof": limits,
            "device": torch.cuda.get_device_name(),
            "versions": {"pyttc": pyttc.__version__, "torch": torch.__version__},
            "commit": common.commit(),
            "date": time.strftime("%Y-%m-%d"),
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("ops", nargs="*", metavar="op", help=f"of {', '.join(CASES)}")
    parser.add_argument("--dry-run", action="store_true", help="print rows, keep none")
    args = parser.parse_args()
    limits, failures = roof(), 0
    name = "-".join(re.findall(r"[a-z0-9]+", torch.cuda.get_device_name().lower()))
    path = common.HERE / "rows" / "gpu" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    for op in args.ops or CASES:
        for case in CASES[op]("cuda"):
            for row in rows_of(case, limits):
                print(row["op"], row["impl"], row["shape"], row["median_us"], "us", flush=True)
                if not row["checked"] or row["roof_percent"] > 100:
                    failures += 1
                    print(f"FAILED: {row}", file=sys.stderr)
                elif not args.dry_run:
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
