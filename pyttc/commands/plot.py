"""The plot of `pyttc curve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import NullFormatter  # noqa: E402

AXES = {"tokens": "new tokens", "flops": "FLOPs", "seconds": "seconds", "dollars": "dollars"}
ROWS = {
    "solved": "with an exact verifier: some path is right",
    "chosen": "without: the answer chosen is right",
}
MARKS = "osD^vP*Xph<>"
LINES = ("-", "--", ":", "-.")


def plot(curve: dict[str, Any], path: Path) -> None:
    """Accuracy against each measure of compute a puzzle, with and without a verifier: a line a model and
    strategy with its interval; the random baseline and each model's greedy accuracy in every panel."""
    points = [p for p in curve["points"] if p["strategy"] != "greedy"]
    axes = [axis for axis in AXES if all(p[axis] is not None for p in curve["points"])]
    models = list(curve["settings"]["models"])
    strategies = list(dict.fromkeys(p["strategy"] for p in points))
    shape: dict[str, Any] = {"figsize": (4.2 * len(axes), 8), "sharey": True, "squeeze": False}
    with plt.rc_context({"svg.hashsalt": "pyttc", "font.size": 9}):
        figure, panels = plt.subplots(len(ROWS), len(axes), **shape)
        for row, kind in enumerate(ROWS):
            for column, axis in enumerate(axes):
                panel = panels[row][column]
                for number, model in enumerate(models):
                    for place, strategy in enumerate(strategies):
                        mine = [
                            p for p in points if (p["model"], p["strategy"]) == (model, strategy)
                        ]
                        if mine:
                            look = {"color": f"C{place}", "marker": MARKS[place % len(MARKS)]}
                            look |= {"linestyle": LINES[number % len(LINES)]}
                            series(panel, mine, kind, axis, f"{model}, {strategy}", look)
                references(panel, curve, kind, axis)
                panel.set_xscale("log")
                panel.xaxis.set_minor_formatter(NullFormatter())
                panel.set_xlabel(f"{AXES[axis]} a puzzle")
                panel.set_title(ROWS[kind] if column == 0 else "", loc="left", fontsize=9)
                panel.grid(alpha=0.3)
            panels[row][0].set_ylabel("puzzles solved, %")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)
        figure.tight_layout(rect=(0, 0.04 + 0.022 * -(-len(labels) // 4), 1, 1))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def series(
    panel: Any, points: list[dict[str, Any]], kind: str, axis: str, label: str, look: dict[str, Any]
) -> None:
    points = sorted(points, key=lambda p: p["n"])
    x = [p[axis] for p in points]
    mean, low, high = ([100 * p[kind][i] for p in points] for i in range(3))
    panel.plot(x, mean, label=label, markersize=4, linewidth=1.3, **look)
    panel.fill_between(x, low, high, alpha=0.08, color=look["color"], linewidth=0)


def references(panel: Any, curve: dict[str, Any], kind: str, axis: str) -> None:
    """Random rollouts with as many tries as the model has paths, at the cost of these paths; and what each
    model says at temperature 0."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for p in curve["points"]:
        if p["strategy"] != "greedy":
            groups.setdefault((p["model"], p["strategy"]), []).append(p)
    if groups:
        longest = max(groups.values(), key=lambda series: len(series))
        longest.sort(key=lambda p: int(p["n"]))
        tries = [p for p in longest if str(p["n"]) in curve["random"]]
        values = [100 * curve["random"][str(p["n"])][0] for p in tries]
        x = [p[axis] for p in tries]
        panel.plot(x, values, "k:", label="random rollouts, as many tries", linewidth=1.5)
    for place, p in enumerate(p for p in curve["points"] if p["strategy"] == "greedy"):
        style = {"color": "0.3" if place == 0 else "0.65", "linestyle": LINES[place % len(LINES)]}
        height = 100 * p[kind][0]
        panel.axhline(height, label=f"{p['model']}, greedy", linewidth=1, **style)
        panel.plot([p[axis]], [height], "|", color=style["color"], markersize=9)
