"""Mutants that are not written by hand: each barrier of the kernels left out, alone."""

import re
from pathlib import Path

from . import Mutant

ROOT = Path(__file__).resolve().parents[3]
BARRIER = re.compile(r"\s*(__sync(threads|warp)\(\);|tl\.debug_barrier\(\).*)\n")


def without_barriers(files: str, tests: str) -> list[Mutant]:
    mutants = []
    for file in sorted(ROOT.glob(files)):
        text = file.read_text()
        lines = text.splitlines(keepends=True)
        for i in range(len(lines)):
            if not BARRIER.fullmatch(lines[i]):
                continue
            begin, end = i, i + 1
            while text.count("".join(lines[begin:end])) > 1:
                begin, end = begin - 1, end + 1
            before = next(above for above in reversed(lines[:i]) if re.search("[a-z]{2}", above))
            mutants.append(
                Mutant(
                    str(file.relative_to(ROOT)),
                    f"no barrier after `{before.strip()}`",
                    "".join(lines[begin:end]),
                    "".join(lines[begin:i] + lines[i + 1 : end]),
                    tests,
                )
            )
    return mutants
