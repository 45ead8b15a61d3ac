"""Runs the benchmarks and appends their rows to benchmarks/rows/<device>.jsonl.

    python -m benchmarks.run [op ...] [--threads 1,2] [--seconds 2] [--dry-run]

Fails, and keeps no row of it, when an output is wrong or a case is faster than the roof allows.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import Any

import torch

from pyttc import dispatch

from . import common, table

ABOVE = 105  # %: the roof is measured too


def main() -> int:
    found = sorted({*dispatch.ops, "linear"})  # bench_engine.py has a command line of its own
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run")
    parser.add_argument(
        "ops", nargs="*", metavar="op", help=f"of {', '.join(found)}; all by default"
    )
    parser.add_argument("--threads", default=f"1,{torch.get_num_threads()}")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case and thread count")
    parser.add_argument("--dry-run", action="store_true", help="print rows, keep none")
    args = parser.parse_args()
    unknown = set(args.ops) - set(found)
    if unknown:
        parser.error(f"no benchmark of {', '.join(sorted(unknown))}: there are {', '.join(found)}")
    threads = sorted({int(n) for n in args.threads.split(",")})

    failures = 0
    path = common.HERE / "rows" / f"{common.device_name()}.jsonl"
    for name in args.ops or found:
        cases = importlib.import_module(f"benchmarks.bench_{name}").cases
        rows = [row for n in threads for row in common.rows(cases(), n, args.seconds)]
        for line in table.lines(rows):
            print(line, flush=True)
        good = [row for row in rows if not failure(row)]
        failures += len(rows) - len(good)
        for row in rows:
            if why := failure(row):
                print(f"FAILED {row['op']} {row['shape']} {row['dtype']}: {why}", file=sys.stderr)
        if not args.dry_run:
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in good)
    return 1 if failures else 0


def failure(row: dict[str, Any]) -> str | None:
    """Why a row cannot be right, or None."""
    if not row["checked"]:
        return "its output differs from the reference"
    if row["roof_percent"] is None:
        return "there is no C++ compiler to measure the roof with"
    if row["roof_percent"] > ABOVE:
        return f"{row['roof_percent']} % of the roof: cached inputs, or wrong bytes or flops"
    return None


if __name__ == "__main__":
    sys.exit(main())
