"""Rewrites the README's table of benchmarks from the rows kept in benchmarks/rows.

python -m benchmarks.table [--check]        --check only says whether the README is up to date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
HEAD = ["op", "shape", "dtype", "threads", "median", "of roof", "against (times as long)"]
ENGINE_HEAD = ["paths", "prompt", "threads", "step", "tokens/s", "of roof", "keys and values"]
ENGINE_HEAD += ["against (times as long)"]
ENGINE_TITLE = (
    "Decoding steps of a 125M Llama-shaped model in bfloat16, N paths of one prompt (bench_engine.py); "
    "keys and values held, and what N copies of them take:"
)


def committed() -> dict[str, list[dict[str, Any]]]:
    """The newest row of each case, by device."""
    devices: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((ROOT / "benchmarks" / "rows").glob("*.jsonl")):
        newest = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            key = (row["op"], row["impl"], json.dumps(row["shape"]), row["dtype"], row["threads"])
            newest[key] = row
        devices[path.stem] = sorted(newest.values(), key=lambda r: (r["op"], r["threads"]))
    return devices


def duration(us: float) -> str:
    return f"{us:.1f} us" if us < 1000 else f"{us / 1000:.2f} ms"


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of rows."""
    table = [HEAD, ["---"] * len(HEAD)]
    for row in rows:
        peers = [f"{name} {peer['ratio']:.1f}x" for name, peer in row["peers"].items()]
        shape = " ".join(f"{name}={size}" for name, size in row["shape"].items())
        table.append(
            [row["op"], shape, row["dtype"], str(row["threads"]), duration(row["median_us"])]
            + [f"{row['roof_percent']:.0f} %", ", ".join(peers)]
        )
    return ["| " + " | ".join(cells) + " |" for cells in table]


def engine_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of rows of bench_engine."""
    table = [ENGINE_HEAD, ["---"] * len(ENGINE_HEAD)]
    for row in rows:
        peers = [
            f"{name} {peer['ratio']:.2f}x" if peer["ratio"] else f"{name}: {peer['why']}"
            for name, peer in row["peers"].items()
        ]
        table.append(
            [str(row["shape"][name]) for name in ("paths", "prompt")]
            + [str(row["threads"]), duration(row["median_us"]), f"{row['tokens_per_second']:.0f}"]
            + [f"{row['roof_percent']:.0f} %"]
            + [f"{row['kv_mib']} MiB of {row['kv_mib_expanded']}", ", ".join(peers)]
        )
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    for row in rows:
        if "host_percent" in row:
            size = f"{row['shape']['paths']} paths and {row['threads']} thread(s)"
            what = "neither matrix products nor kernels (Python, dispatch, bookkeeping)"
            lines += ["", f"Of a step of {size}, {row['host_percent']} % are {what}."]
    return lines


def block() -> str:
    """What stands between the README's markers."""
    parts = []
    for rows in committed().values():
        last = max(rows, key=lambda row: row["date"])
        versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
        title = f"{last['device']}, {last['isa']}; {versions}; {last['date']}, {last['commit']}"
        ops = [row for row in rows if row["op"] != "engine"]
        parts += [title, "", *lines(ops), ""]
        if len(ops) < len(rows):
            parts += [ENGINE_TITLE, "", *engine_lines([r for r in rows if r["op"] == "engine"]), ""]
    return "\n".join([BEGIN, "", *parts, END])


def rewritten(readme: str) -> str:
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md: the markers {BEGIN} and {END} are missing")
    return head + block() + tail


def main() -> int:
    path = ROOT / "README.md"
    old = path.read_text()
    new = rewritten(old)
    if "--check" in sys.argv[1:]:
        return int(old != new)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
