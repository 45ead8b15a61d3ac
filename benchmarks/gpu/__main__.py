"""Times the kernels of a GPU, each implementation that can run there beside what else would do the same, and
appends rows to benchmarks/rows/gpu/<device>.jsonl.

    python -m benchmarks.gpu [case ...] [--out DIR]

A case is an op, or FastTree or PAT for the trees these were published with; none: all ops. A sample is one
replay of a CUDA graph that holds a call on each of several inputs, together more than twice the L2 cache,
divided by their number. Rows of attention say what the plan of a step costs on the host beside it: built, and
after every path has grown by a token. FlashInfer is measured where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import pyttc

from .. import common
from ..run import ABOVE
from .cases import CASES, TREES, Case

IMPLS = ("cuda", "triton")
REPLAYS, WARM = 55, 5
MOST_PEER_BYTES = 48 << 30  # of inputs that a peer makes for itself


def is_right(case: Case, impl: str, args: Any) -> bool:
    """Against the native kernel on the CPU."""
    there = [a.to("cpu", copy=True) if isinstance(a, torch.Tensor) else a.to("cpu") for a in args]
    got = case["run"](*args, impl=impl)
    right = case["run"](*there, impl="native")
    names = getattr(right, "_fields", range(len(right)))
    # A draw within an ulp of where another column begins may fall on its other side: of a whole
    # vocabulary one in two thousand.
    strays = -(-len(right[0]) // 256) if case["op"] == "sample" and len(right[0]) >= 64 else 0
    for name, g, r in zip(names, got, right, strict=True):
        if name in case["exact"]:
            wrong = int((g.cpu() != r).sum()) > (strays if name == "tokens" else 0)
        else:
            wrong = r.dtype.is_floating_point and not near(g.cpu(), r, strays)
        if wrong:
            return False
    return True


def near(got: torch.Tensor, right: torch.Tensor, strays: int) -> bool:
    """Within roundings of an output and of what all are like, but for so many."""
    step = 2 * torch.finfo(right.dtype).eps if right.dtype != torch.float32 else 1e-4
    got, right = got.double(), right.double()
    finite = right.isfinite()
    spread = right[finite].std() if finite.sum() > 1 else 0
    off = (got - right).abs() > step * (right.abs() + spread) + 1e-6
    return int(torch.where(finite, off, got != right).sum()) <= strays


def replayed(calls: list[Callable[[], Any]]) -> common.Timing:
    """Seconds a call, of replays of a graph of all of them."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Held, so that each is written somewhere else, and not always into the cache.
        outputs = [call() for call in calls]
    samples = []
    for i in range(WARM + REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= WARM:
            samples.append(start.elapsed_time(end) * 1e-3 / len(calls))
    del outputs
    return common.summary(samples)


def copies(nbytes: int) -> int:
    """Inputs that together no cache holds; of the smallest, whose calls launching bounds, a thousand."""
    size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(1000, size // nbytes + 1))


def of_peers(case: Case, inputs: list[Any]) -> dict[str, common.Timing | str]:
    """What each peer takes, or why it does not run."""
    took: dict[str, common.Timing | str] = {}
    nbytes = max(case["bytes"], case.get("peer_bytes", 0))
    for name, peer in case["peers"].items():
        if nbytes > MOST_PEER_BYTES:
            took[name] = f"its inputs take {nbytes >> 30} GiB"
            continue
        torch.compiler.reset()  # torch gives a function up that was compiled for many shapes
        try:
            took[name] = replayed([peer(*x) for x in inputs[: copies(nbytes)]])
        except Exception as error:
            took[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        torch.cuda.empty_cache()
    return took


def roof() -> dict[str, float]:
    """Bytes and bfloat16 operations a second: of a copy of 1 GiB or reading one, of a product of 8192."""
    a = torch.zeros(1 << 28, device="cuda")
    b, m = torch.empty_like(a), torch.randn(8192, 8192, device="cuda").bfloat16()
    copied, read = replayed([lambda: b.copy_(a)]).p20, replayed([lambda: a.amax()]).p20
    return {
        "bytes_s": max(2 * a.nbytes / copied, a.nbytes / read),
        "flops_s": 2 * 8192**3 / replayed([lambda: m @ m]).p20,
    }


def rows_of(case: Case, limits: dict[str, float]) -> Iterator[dict[str, Any]]:
    inputs = [case["make"]() for _ in range(copies(case["bytes"]))]
    least = max(case["bytes"] / limits["bytes_s"], case.get("flops", 0) / limits["flops_s"])
    peers: dict[str, common.Timing | str] | None = None
    for impl in IMPLS:
        chosen = pyttc.dispatch.ops[case["op"]].impls.get(impl)
        if chosen is None or chosen.missing:
            continue
        checked = is_right(case, impl, inputs[0])
        took = replayed([lambda x=x, impl=impl: case["run"](*x, impl=impl) for x in inputs])
        if peers is None:
            peers = of_peers(case, inputs)
        yield {
            "op": case["op"],
            "impl": impl,
            "shape": case["shape"],
            "dtype": case.get("dtype", "bfloat16"),
            "median_us": round(took.median * 1e6, 2),
            "p20_us": round(took.p20 * 1e6, 2),
            "p80_us": round(took.p80 * 1e6, 2),
            "bytes": case["bytes"],
            "flops": case.get("flops", 0),
            "roof_percent": round(100 * least / took.median, 1),
            "checked": checked,
            "peers": {name: of_peer(t, took) for name, t in peers.items()},
            "goal_us": case.get("goal_us"),
            "plan_us": case.get("plan_us"),
            "clock": f"CUDA graph of {len(inputs)} inputs",
            "roof": limits,
            "device": torch.cuda.get_device_name(),
            "versions": versions(),
            "commit": common.commit(),
            "date": time.strftime("%Y-%m-%d"),
        }


def of_peer(peer: common.Timing | str, ours: common.Timing) -> dict[str, Any]:
    if isinstance(peer, str):
        return {"median_us": None, "ratio": None, "why": peer}
    return {
        "median_us": round(peer.median * 1e6, 2),
        "ratio": round(peer.median / ours.median, 2),
    }


def versions() -> dict[str, str | None]:
    named = {"pyttc": pyttc.__version__, "torch": torch.__version__, "cuda": torch.version.cuda}
    return {**named, "triton": importlib.metadata.version("triton")}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    known = {**CASES, **TREES}
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(known)}")
    parser.add_argument("--out", type=Path, help="keep the rows in this folder instead")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(known):
        parser.error(f"case: got {', '.join(sorted(unknown))}, expected some of {', '.join(known)}")
    limits, failures = roof(), 0
    name = "-".join(re.findall(r"[a-z0-9]+", torch.cuda.get_device_name().lower()))
    path = (args.out or common.HERE / "rows" / "gpu") / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    for chosen in args.cases or CASES:
        for case in known[chosen]("cuda"):
            try:
                for row in rows_of(case, limits):
                    print(said(row), flush=True)
                    if not row["checked"] or row["roof_percent"] > ABOVE:
                        raise ValueError("wrong, or faster than can be: bytes or flops are wrong")
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            except Exception as error:  # the next case may do better
                failures += 1
                print(f"FAILED: {case['op']} {case['shape']}: {error!r}", file=sys.stderr)
            torch.cuda.empty_cache()
    return 1 if failures else 0


def said(row: dict[str, Any]) -> str:
    goal = f" (goal {row['goal_us']})" if row["goal_us"] else ""
    ratios = [f"{name} {peer['ratio']}x" for name, peer in row["peers"].items() if peer["ratio"]]
    roof = f"{row['roof_percent']} % of the roof"
    took = f"{row['median_us']} us{goal}, {roof}"
    return ", ".join([f"{row['op']} {row['impl']} {row['shape']}: {took}", *ratios])


if __name__ == "__main__":
    sys.exit(main())
