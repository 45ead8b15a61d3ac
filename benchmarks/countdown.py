"""Rewrites the README's section on Countdown from the curve kept in benchmarks/countdown/curve.json.

pyttc curve --problems 200 --out benchmarks/countdown/curve.json     measures, and draws the plot
python -m benchmarks.countdown [--check]     --check only says whether the README is up to date
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from pyttc.commands.curve import read

ROOT = Path(__file__).parent.parent
CURVE = ROOT / "benchmarks" / "countdown" / "curve.json"
BEGIN, END = "<!-- countdown: begin -->", "<!-- countdown: end -->"
MISSING = (
    "The trained models are not in this checkout yet. `pyttc curve --problems 200 --out "
    "benchmarks/countdown/curve.json` and `python -m benchmarks.countdown` write what will stand here."
)
NAMES = {
    "sample-n": ("solved", "sample-n, verified exactly"),
    "best-of-n": ("chosen", "best-of-n by process reward, no verifier"),
    "majority": ("chosen", "majority vote, no verifier"),
    "beam": ("chosen", "beam by process reward, no verifier"),
    "dvts": ("chosen", "DVTS, no verifier"),
    "rebase": ("chosen", "REBASE, no verifier"),
}


class Curve:
    def __init__(self, found: dict[str, Any]) -> None:
        self.random, self.settings, self.machine = (
            found["random"],
            found["settings"],
            found["machine"],
        )
        self.points = {(p["model"], p["strategy"], p["n"]): p for p in found["points"]}
        self.models = list(dict.fromkeys(model for model, _, _ in self.points))  # largest first
        self.sizes = sorted({n for _, strategy, n in self.points if strategy != "greedy"})

    def series(self, model: str, strategy: str) -> list[dict[str, Any]]:
        found = (self.points.get((model, strategy, n)) for n in self.sizes)
        return [point for point in found if point]

    def needs(self, model: str, strategy: str, kind: str, goal: float, unit: str) -> float | None:
        """The least of a unit with which accuracy reaches the goal, between points on a line in the
        logarithm of the unit; None where it is never reached."""
        series = self.series(model, strategy)
        for i, point in enumerate(series):
            if point[kind][0] >= goal:
                if i == 0 or point[kind][0] == series[i - 1][kind][0]:
                    return float(point[unit])
                low, high = series[i - 1], point
                share = (goal - low[kind][0]) / (high[kind][0] - low[kind][0])
                a, b = math.log(low[unit]), math.log(high[unit])
                return math.exp(a + share * (b - a))
        return None


def percent(interval: list[float]) -> str:
    mean, low, high = (100 * value for value in interval)
    return f"{mean:.0f} ({low:.0f}-{high:.0f})"


def table(curve: Curve) -> list[str]:
    rows = [["puzzles solved, % (95 % interval)", *(f"N = {n}" for n in curve.sizes)]]
    rows.append(["---"] * len(rows[0]))
    rows.append(["random rollouts", *(percent(curve.random[str(n)]) for n in curve.sizes)])
    for model in curve.models:
        greedy = curve.points.get((model, "greedy", 1))
        if greedy:
            blank = [""] * (len(curve.sizes) - 1)
            rows.append([f"{model}, greedy", percent(greedy["solved"]), *blank])
        for strategy, (kind, said) in NAMES.items():
            cells = [curve.points.get((model, strategy, n)) for n in curve.sizes]
            if any(cells):
                shown = [percent(p[kind]) if p else "" for p in cells]
                rows.append([f"{model}, {said}", *shown])
    return ["| " + " | ".join(row) + " |" for row in rows]


def sentences(curve: Curve) -> list[str]:
    """What follows from the points: search by reward, search against size, seconds against size."""
    said = []
    for model in curve.models:
        best = curve.points.get((model, "best-of-n", curve.sizes[-1]))
        for strategy in ("beam", "rebase", "dvts"):
            if not best or not curve.series(model, strategy):
                continue
            tokens = curve.needs(model, strategy, "chosen", best["chosen"][0], "tokens")
            goal = f"best-of-{best['n']}'s accuracy ({100 * best['chosen'][0]:.0f} %)"
            if tokens is None:
                said.append(
                    f"- {model}: {strategy} does not reach {goal} with up to {best['n']} paths."
                )
            else:
                ratio = best["tokens"] / tokens
                said.append(
                    f"- {model}: {strategy} reaches {goal} with {tokens:,.0f} tokens a puzzle, "
                    f"best-of-n with {best['tokens']:,.0f}: {ratio:.1f} times as many."
                )
    large, small = curve.models[0], curve.models[-1]
    greedy = curve.points.get((large, "greedy", 1))
    if greedy and large != small:
        goal = greedy["solved"][0]
        for unit, name in (("flops", "FLOPs"), ("seconds", "seconds")):
            spent = curve.needs(small, "sample-n", "solved", goal, unit)
            ratio = "no amount measured" if spent is None else f"{spent / greedy[unit]:.2g} times"
            said.append(
                f"- {small} with search and a verifier reaches what {large} says at once "
                f"({100 * goal:.0f} %) with {ratio} its {name}."
            )
    return said


def block() -> str:
    """What stands between the README's markers."""
    if not CURVE.exists():
        return "\n".join([BEGIN, "", MISSING, "", END])
    curve = Curve(read(CURVE))
    about, machine = curve.settings, curve.machine
    title = (
        f"{about['problems']} test puzzles of {about['numbers']} numbers; {machine['device']}, "
        f"{machine['threads']} threads, torch {machine['torch']}, pyttc {machine['pyttc']}"
    )
    image = "![accuracy against compute](benchmarks/countdown/curve.svg)"
    lines = [BEGIN, "", image, "", title, "", *table(curve), "", *sentences(curve), "", END]
    return "\n".join(lines)


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
