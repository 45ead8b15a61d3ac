"""The README's section on what was tried, from the files in docs/trust.

python -m tests.trust.readme [--verify]     --verify runs `pyttc verify` first and keeps its counts
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from .evidence import ROOT, write_evidence

README = ROOT / "README.md"
BEGIN, END = "<!-- trust: begin -->", "<!-- trust: end -->"
HEAD = "| what was tried | how often | with |\n| --- | --- | --- |\n"


def sanitizer(name: str, tests: str) -> tuple[str, str]:
    return (
        f"{tests} under {name}, with planted bugs that it finds",
        "{tests:,} tests, {reports} reports",
    )


# Of each file in docs/trust: what was tried, how often, and the command.
LINES: dict[str, tuple[str, str, str]] = {
    "verify": (
        "results compared bit for bit while batch, order, sharing, strides, pages and threads change",
        "{bits:,} numbers, in {seconds} s",
        "pyttc verify",
    ),
    "draws": ("draws against exact draws and probabilities", "{draws:,}", "pyttc verify"),
    "examples": (
        "property tests with far more examples",
        "{examples:,} examples of {properties} properties",
        "make examples",
    ),
    "invalid_calls": (
        "calls with one argument spoiled: refused, nothing changed",
        "{refused:,}",
        "make examples",
    ),
    "fuzz": ("inputs of a coverage-guided fuzzer", "{inputs:,}", "make fuzz"),
    "faults": (
        "requests for memory that fail in the middle of a call: nothing lost, same bits after",
        "{failed:,}",
        "make faults",
    ),
    "kills": (
        "searches and curves killed with SIGKILL at random points and resumed: equal to the bit",
        "{points} points, {kills} kills, {differ} differ",
        "make kills",
    ),
    "interrupts": (
        "searches stopped by Ctrl-C at random moments: nothing lost, resumed to the same bits",
        "{moments}",
        "make kills",
    ),
    "soak": (
        "an hour of random calls: growth of memory, drift of a step's time, pages lost",
        "{memory_mib_per_hour} MiB/h, {step_time_drift_percent} %, {pages_lost}",
        "make soak",
    ),
    "sanitizers_address": (
        *sanitizer("AddressSanitizer and UndefinedBehaviorSanitizer", "the tests of native code"),
        "make asan",
    ),
    "sanitizers_thread": (*sanitizer("ThreadSanitizer", "threaded kernels"), "make tsan"),
    "kernel_mutants": (
        "bugs planted by hand in C++, CUDA (emulated) and Triton (interpreted) kernels",
        "{killed} of {mutants} noticed by the tests",
        "make mutants",
    ),
    "python_mutants": (
        "random changes of the Python of the ops, the sampler and the page cache",
        "{killed} of {tried} tried (of {mutants}) noticed",
        "make mutants",
    ),
}


def evidence(name: str) -> dict[str, Any] | None:
    file = ROOT / "docs/trust" / f"{'verify' if name == 'draws' else name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def block() -> str:
    lines = [
        f"| {what} | {often.format(**found)} | `{command}` |"
        for name, (what, often, command) in LINES.items()
        if (found := evidence(name))
    ]
    return "\n".join([BEGIN, "", HEAD + "\n".join(lines), "", END])


def rewritten(readme: str) -> str:
    head, _, rest = readme.partition(BEGIN)
    return head + block() + rest.partition(END)[2]


def verify() -> None:
    began = time.time()
    command = [sys.executable, "-m", "pyttc", "verify", "--json"]
    said = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    def counted(*units: str, name: str = "") -> int:
        return sum(c["compared"] for c in said if c["unit"] in units and c["name"].startswith(name))

    write_evidence(
        "verify",
        "pyttc verify on this machine",
        began,
        checks=len(said),
        bits=counted("numbers", name="bits"),
        numbers=counted("numbers"),
        draws=counted("draws"),
        operations=counted("operations"),
        tokens=counted("tokens"),
    )


def main() -> None:
    if "--verify" in sys.argv[1:]:
        verify()
    README.write_text(rewritten(README.read_text()))


if __name__ == "__main__":
    main()
