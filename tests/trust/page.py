"""docs/mutants.md from what the runs left in docs/trust, and from the reasons for what survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .mutants import Mutant
from .survivors import REASONS

DOCS = Path(__file__).resolve().parents[2] / "docs"

INTRO = """# Mutants

Do the tests notice when the code is wrong? Bugs are planted in a copy of the source, one at a time, and the
tests must fail. `make mutants` runs them all and writes this page.

"""


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


def kernels(mutants: list[Mutant], found: dict[str, Any]) -> str:
    text = "## Kernels\n\n"
    text += (
        f"By hand, each of a kind that kernels have had: {found['killed']} of {found['mutants']} "
    )
    text += "killed. Those of `csrc/cuda` run in the emulation on the CPU, those of `triton_kernels` in "
    text += "Triton's interpreter.\n\n"
    text += row("file", "bug", "instruction set", "tests", "result") + row(*["---"] * 5)
    for mutant in mutants:
        alive = f"{mutant.path}: {mutant.bug}" in found["survivors"]
        tests = mutant.tests.replace("tests/", "")
        result = "survives" if alive else "killed"
        text += row(f"`{mutant.path}`", mutant.bug, mutant.isa or "all", f"`{tests}`", result)
    return text


def python(found: dict[str, Any]) -> str:
    low, high = found["killed_share_95_percent"]
    text = "\n## Python\n\n"
    text += (
        f"Of {found['mutants']} small changes (a comparison, a constant, an operator, a guard, a "
    )
    text += f"statement, a returned value) a random sample of {found['tried']}: {found['killed']} killed, "
    text += (
        f"{found['killed'] / found['tried']:.1%} (of a fresh sample that would mean {low:.1%} to "
    )
    text += f"{high:.1%} at 95 %; but tests were written for what survived of this one at first). "
    text += "Left out: `run_cuda`, which only the emulation runs, and what only words an error.\n\n"
    text += row("file", "changes", "tried", "killed") + row(*["---"] * 4)
    for path, n in found["modules"].items():
        text += row(f"`{path}`", n["mutants"], n["tried"], n["killed"])
    if found["modules_not_run"]:
        text += f"\nNot run: {', '.join(found['modules_not_run'])}.\n"
    text += "\nThe survivors:\n\n" + row("where", "change", "why") + row(*["---"] * 3)
    for path, alive in found["survivors"].items():
        for one in alive:
            why = REASONS.get((path, one["in"], one["what"]), "")
            text += row(f"`{path}` {one['in']}", f"`{one['what']}`", why)
    return text


def write(mutants: list[Mutant]) -> None:
    text = INTRO
    for name, part in (
        ("kernel_mutants", lambda f: kernels(mutants, f)),
        ("python_mutants", python),
    ):
        file = DOCS / f"trust/{name}.json"
        text += part(json.loads(file.read_text())) if file.exists() else ""
    (DOCS / "mutants.md").write_text(text)
