"""What `pyttc solve` prints for people."""

from __future__ import annotations

from typing import Any, TextIO

from .common import plain

NARROW = 100  # columns where the output is no terminal
SIGNS = {True: "yes", False: "no", None: "-"}


def show(report: dict[str, Any], out: TextIO) -> None:
    """Prints the report of `solve.summary`: a table, and a few sentences below it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=out, width=None if out.isatty() else NARROW, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    countdown = "solved" in report
    for name in ("puzzle" if countdown else "prompt", "answer"):
        table.add_column(name, overflow="fold")
    for name in ("verified", "paths", "tokens", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["rows"]:
        style = {True: "green", False: "dim", None: ""}[row["verified"]]
        answer = "no path came to its end" if row["answer"] is None else plain(row["answer"])
        cells = [plain(row["puzzle"]), answer, SIGNS[row["verified"]], f"{row['paths']:,}"]
        cells += [f"{row['tokens']:,}", f"{row['seconds']:.1f}"]
        table.add_row(*(Text(cell, style=style) for cell in cells))
    console.print(table)
    for line in sentences(report):
        console.print(Text(line))


def sentences(report: dict[str, Any]) -> list[str]:
    tokens, seconds = report["tokens"], report["seconds"]
    how = f"{report['model']}, {report['strategy']}, {report['n']} paths each"
    said = [
        f"{how}: {tokens:,} tokens in {seconds:.1f} s ({tokens / max(seconds, 1e-9):,.0f} a second)"
    ]
    if "solved" in report:
        total = len(report["rows"])
        said.insert(
            0,
            f"{report['solved']} of {total} solved, each answer checked exactly; {report['n']} random "
            f"tries each would solve {report['random']:.1f}",
        )
        hopeless = [row["puzzle"] for row in report["rows"] if row["solvable"] is False]
        said += [f"{puzzle} has no solution, as the exact solver knows" for puzzle in hopeless]
    elif cut := sum(not row["finished"] for row in report["rows"]):
        said.append(
            f"{cut} of {len(report['rows'])}: no path came to its end, and what is shown was cut off; raise "
            "--max-tokens, or name a text that ends a path with --until"
        )
    if report["stopped"]:
        said.append(f"stopped: {report['stopped']}; these are the best so far")
    return said
