"""Writes docs/benchmarks.md, and what the README shows of it, from the rows kept in benchmarks/rows.

python -m benchmarks.table [--check]        --check only says whether both are up to date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README, ALL = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
ALL_HEAD = """# Benchmarks

Ratios to other ways of doing the same, in one run, interleaved; inputs that no cache holds. "Of roof" is
the part of the measured memory or arithmetic limit of the machine. One thread is timed in CPU time, several
on the wall. `make bench` measures and rewrites this page.
"""
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
HEAD = ["op", "shape", "dtype", "threads", "median", "of roof", "against (times as long)"]
ENGINE_HEAD = [
    "model",
    "paths",
    "prompt",
    "threads",
    "step",
    "tokens/s",
    "of roof",
    "keys and values",
]
ENGINE_HEAD += ["where the time goes", "against (times as long)"]
ENGINE_TITLE = (
    "Decoding steps in bfloat16, N paths of one prompt (bench_engine.py); "
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


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} %"


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of rows."""
    table = [HEAD, ["---"] * len(HEAD)]
    for row in rows:
        peers = [f"{name} {peer['ratio']:.1f}x" for name, peer in row["peers"].items()]
        shape = " ".join(f"{name}={size}" for name, size in row["shape"].items())
        table.append(
            [row["op"], shape, row["dtype"], str(row["threads"]), duration(row["median_us"])]
            + [percent(row["roof_percent"]), ", ".join(peers)]
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
            [str(row["shape"][name]) for name in ("model", "paths", "prompt")]
            + [str(row["threads"]), duration(row["median_us"]), f"{row['tokens_per_second']:.0f}"]
            + [f"{row['roof_percent']:.0f} %"]
            + [f"{row['kv_mib']} MiB of {row['kv_mib_expanded']}", shares(row), ", ".join(peers)]
        )
    return ["| " + " | ".join(cells) + " |" for cells in table]


def shares(row: dict[str, Any]) -> str:
    parts = row.get("parts_percent", {})
    return ", ".join(f"{part} {percent(share)}" for part, share in parts.items())


def peer_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of rows of bench_peers: tokens a second, and pyttc's over the best of the others with
    weights of 16 bits or more."""
    names = list(dict.fromkeys(name for row in rows for name in row["engines"]))
    table = [["prompt", "paths", "threads", *names, "pyttc / best"]]
    table.append(["---"] * len(table[0]))
    for row in rows:
        speeds = {name: e.get("tokens_per_second") for name, e in row["engines"].items()}
        others = [
            speed
            for name, speed in speeds.items()
            if speed and name != "pyttc" and row["engines"][name]["dtype"] != "int8"
        ]
        ours, best = speeds.get("pyttc"), max(others, default=None)
        table.append(
            [str(row["shape"][name]) for name in ("prompt", "paths")]
            + [str(row["threads"])]
            + [f"{speed:.0f}" if (speed := speeds.get(name)) else "" for name in names]
            + [f"{ours / best:.2f}" if ours and best else ""]
        )
    return ["| " + " | ".join(cells) + " |" for cells in table]


def headlines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each op the largest case, and of the engine all, on one thread."""
    largest: dict[str, dict[str, Any]] = {}
    kept = []
    for row in rows:
        if row["threads"] > 1:
            continue
        if row["op"] == "engine":
            kept.append(row)
            continue
        before = largest.setdefault(row["op"], row)
        if (row["flops"], row["bytes"]) > (before["flops"], before["bytes"]):
            largest[row["op"]] = row
    return [*largest.values(), *kept]


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Machine and versions, then the rows of ops and of the engine."""
    last = max(rows, key=lambda row: row["date"])
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    title = f"{last['device']}, {last['isa']}; {versions}; {last['date']}, {last['commit']}"
    ops = [row for row in rows if row["op"] != "engine"]
    parts = [title, "", *lines(ops), ""]
    if len(ops) < len(rows):
        parts += [ENGINE_TITLE, "", *engine_lines([r for r in rows if r["op"] == "engine"]), ""]
    return parts


def block() -> str:
    """What stands between the README's markers."""
    parts = [line for rows in committed().values() for line in tables(headlines(rows))]
    return "\n".join([BEGIN, "", *parts, END])


def page() -> str:
    """docs/benchmarks.md."""
    return "\n".join([ALL_HEAD, *(line for rows in committed().values() for line in tables(rows))])


def rewritten(readme: str) -> str:
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md: the markers {BEGIN} and {END} are missing")
    return head + block() + tail


def main() -> int:
    wanted = {README: rewritten(README.read_text()), ALL: page()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        return int(bool(stale))
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
