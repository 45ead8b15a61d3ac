"""Draws docs/speedup.svg and docs/roof.svg from the rows kept in benchmarks/rows.

python -m benchmarks.plots
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter  # noqa: E402

from . import table  # noqa: E402

PLOTS = (table.ROOT / "docs" / "speedup.svg", table.ROOT / "docs" / "roof.svg")


def speedup(rows: list[dict[str, Any]], path: Path) -> None:
    """The engine's decoding speed over transformers' generate against N, of the 125M model: a line a
    prompt length, a panel a number of threads."""
    engine = [row for row in rows if row["op"] == "engine" and row["shape"]["model"] == "125M"]
    threads = sorted({row["threads"] for row in engine})
    figure, panels = plt.subplots(
        1, len(threads), figsize=(4.2 * len(threads), 3.4), sharey=True, squeeze=False
    )
    for panel, count in zip(panels[0], threads, strict=True):
        points: dict[int, list[tuple[int, float]]] = {}
        for row in engine:
            peers = (p["ratio"] for name, p in row["peers"].items() if "generate" in name)
            ratio = next(peers, None)
            if row["threads"] == count and ratio:
                points.setdefault(row["shape"]["prompt"], []).append((row["shape"]["paths"], ratio))
        for prompt, line in sorted(points.items()):
            panel.plot(*zip(*sorted(line), strict=True), marker="o", label=f"prompt of {prompt:,}")
        panel.axhline(1, color="0.5", linewidth=1)
        panel.set(xscale="log", yscale="log", xlabel="paths")
        panel.set_title(f"{count} thread{'s' * (count > 1)}", loc="left", fontsize=9)
        for axis, ticks in ((panel.xaxis, (1, 8, 32, 64)), (panel.yaxis, (1, 2, 4, 8, 16, 32))):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("times transformers' speed")
    panels[0][0].legend(fontsize=8, frameon=False)
    save(figure, path)


def roof(rows: list[dict[str, Any]], path: Path) -> None:
    """What part of the machine's limit each op reaches on one thread, at its largest shape."""
    ops = [row for row in table.headlines(rows) if row["op"] != "engine"]
    ops.sort(key=lambda row: row["roof_percent"])
    figure, panel = plt.subplots(figsize=(7, 0.34 * len(ops) + 0.9))
    bars = panel.barh([row["op"] for row in ops], [row["roof_percent"] for row in ops], color="C0")
    panel.bar_label(bars, [f" {row['dtype']}" for row in ops], fontsize=8)
    panel.set(xlim=(0, 100), xlabel="% of the roof: memory or arithmetic, whichever bounds it")
    panel.grid(axis="x", alpha=0.3)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw(folder: Path) -> list[Path]:
    """Both plots in a folder, of the last device that has rows."""
    *_, rows = table.committed().values()
    paths = [folder / path.name for path in PLOTS]
    with plt.rc_context({"svg.hashsalt": "pyttc", "font.size": 9}):
        speedup(rows, paths[0])
        roof(rows, paths[1])
    return paths


if __name__ == "__main__":
    draw(PLOTS[0].parent)
