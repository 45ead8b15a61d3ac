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
PEERS_HEAD = """## Beside other engines

Tokens a second of N paths of one prompt, random weights, temperature 0.8, top-k 50: N over the median step,
every engine a process of its own, asked in turn (`make bench-peers`; how each is used stands in
benchmarks/peers). One thread in CPU time of the process, two on the wall. The last column is against the best
with weights of 16 bits or more; int8 stands beside them for comparison. Prefill runs a new prompt, start is
until all paths have their first token of a known one."""
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


def committed(folder: str = "rows") -> dict[str, list[dict[str, Any]]]:
    """The newest row of each case, by device."""
    devices: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((ROOT / "benchmarks" / folder).glob("*.jsonl")):
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


def over_best(row: dict[str, Any], bits: int) -> float | None:
    """pyttc's tokens a second over those of the best other engine with 8-bit weights, or with wider ones."""
    engines = row["engines"]
    ours = engines.get("pyttc", {}).get("tokens_per_second", 0)
    others = [
        e.get("tokens_per_second", 0)
        for name, e in engines.items()
        if name != "pyttc" and (e["dtype"] == "int8") == (bits == 8)
    ]
    best = max(others, default=0)
    return ours / best if ours and best else None


def peer_summary() -> list[str]:
    """What the README says of the other engines."""
    parts = []
    for rows in committed("rows/peers").values():
        for model in dict.fromkeys(row["shape"]["model"] for row in rows):
            parts += over_others(model, [row for row in rows if row["shape"]["model"] == model])
    return parts


def over_others(model: str, rows: list[dict[str, Any]]) -> list[str]:
    last, ranges = max(rows, key=lambda row: row["date"]), []
    for title, chosen in (
        ("8 paths or more", [r for r in rows if r["shape"]["paths"] >= 8]),
        ("a single path", [r for r in rows if r["shape"]["paths"] == 1]),
    ):
        for bits in (16, 8):
            known = [x for r in chosen if (x := over_best(r, bits))]
            if known:
                span = f"{min(known):.2f} to {max(known):.2f} times in {len(known)} cells"
                ranges.append(f"- {title}, weights of {bits} bits: {span}")
    prompts = ", ".join(str(n) for n in sorted({r["shape"]["prompt"] for r in rows}))
    return [
        f"Tokens a second over those of the best other engine: {model}, one and two threads, prompts of "
        f"{prompts} tokens ({last['device']}, {last['isa']}; {last['date']}, {last['commit']}):",
        "",
        *ranges,
        "",
    ]


def peer_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of rows of bench_peers: tokens a second, and pyttc's over the best of the others with
    weights of 16 bits or more."""
    names = list(dict.fromkeys(name for row in rows for name in row["engines"]))
    table = [["prompt", "paths", "threads", *names, "pyttc / best"]]
    table.append(["---"] * len(table[0]))
    for row in rows:
        engines = row["engines"]
        speeds = {name: engines.get(name, {}).get("tokens_per_second", 0) for name in names}
        ratio = over_best(row, 16)
        table.append(
            [str(row["shape"]["prompt"]), str(row["shape"]["paths"]), str(row["threads"])]
            + [f"{speeds[name]:.0f}" if speeds[name] else "-" for name in names]
            + [f"{ratio:.2f}" if ratio else "-"]
        )
    return ["| " + " | ".join(cells) + " |" for cells in table]


def peer_costs(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of what else the engines took at the most paths, on one thread."""
    table = [["engine", "weights", "prompt", "prefill", "start of 64", "loaded", "at most"]]
    table.append(["---"] * len(table[0]))
    for row in rows:
        if (row["shape"]["paths"], row["threads"]) != (64, 1):
            continue
        for e in row["engines"].values():
            if "why" not in e:
                table.append(
                    [e["engine"], e["dtype"], str(row["shape"]["prompt"])]
                    + [f"{e[s]:.2f} s" if e.get(s) else "-" for s in ("prefill_s", "start_s")]
                    + [f"{e['loaded_mib']} MiB", f"{e['peak_mib']} MiB"]
                )
    return ["| " + " | ".join(cells) + " |" for cells in table]


def peer_page() -> list[str]:
    """What docs/benchmarks.md says of the other engines."""
    parts = []
    for rows in committed("rows/peers").values():
        last = max(rows, key=lambda row: row["date"])
        title = f"{last['device']}, {last['isa']}; {last['date']}, {last['commit']}"
        reasons = dict.fromkeys(
            f"- {name}, {row['shape']['paths']} paths of {row['shape']['prompt']}: {e['why']}"
            for row in rows
            for name, e in row["engines"].items()
            if "why" in e
        )
        for model in dict.fromkeys(row["shape"]["model"] for row in rows):
            chosen = [row for row in rows if row["shape"]["model"] == model]
            parts += ["", f"{title}, {model}", "", *peer_lines(chosen), "", *peer_costs(chosen)]
        parts += ["", *reasons] if reasons else []
    return ["", *PEERS_HEAD.splitlines(), *parts, ""] if parts else []


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
    parts += peer_summary()
    return "\n".join([BEGIN, "", *parts, END])


def page() -> str:
    """docs/benchmarks.md."""
    ours = [line for rows in committed().values() for line in tables(rows)]
    return "\n".join([ALL_HEAD, *ours, *peer_page()])


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
