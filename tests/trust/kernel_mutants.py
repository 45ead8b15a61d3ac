"""Do the tests notice bugs in kernels? Each mutant of tests/trust/mutants is built in a copy of the source,
one after the other, and the tests it names must fail; those tests are run on the source as it is first::

    python -m tests.trust.kernel_mutants                  all, and docs/trust/kernel_mutants.json
    python -m tests.trust.kernel_mutants select_beams     those whose file, bug or tests say so
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from . import page
from .evidence import write_evidence
from .killed import Killed
from .mutants import Mutant
from .mutants.cpu import MUTANTS as CPU
from .mutants.cuda import MUTANTS as CUDA
from .mutants.triton import MUTANTS as TRITON
from .workshop import Workshop

TIMEOUT = 300  # seconds; a test that never ends has noticed
MUTANTS = [*CPU, *CUDA, *TRITON]


def environment(mutant: Mutant) -> dict[str, str]:
    if mutant.path.startswith("triton_kernels/"):
        return {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return {"PYTTC_EXAMPLES": "20", "PYTTC_CPU_ISA": mutant.isa}


def run(workshop: Workshop, mutant: Mutant) -> bool:
    """Whether the mutant's tests pass."""
    code, text = workshop.test(
        "-x", *mutant.tests.replace("'", "").split(" ", 2), timeout=TIMEOUT, **environment(mutant)
    )
    if code not in (None, 0, 1) and code > 0:  # 1: a test failed; negative: it crashed
        raise SystemExit(f"{mutant.tests}: pytest ended with {code}\n{text[-3000:]}")
    return code == 0


@contextmanager
def objects_kept(workshop: Workshop, mutant: Mutant) -> Iterator[None]:
    """Lets only the objects of the mutant's instruction set be made anew, and has all back afterwards."""
    made = [
        listing.with_suffix(".o")
        for listing in (workshop.root / "build/dev").rglob("*.d")
        if mutant.path in listing.read_text().split()
    ]
    before = {path: path.read_bytes() for path in made}
    for path in made:
        if mutant.isa and not path.stem.endswith(f"_{mutant.isa}"):
            os.utime(path)
    try:
        yield
    finally:
        for path, data in before.items():
            path.write_bytes(data)


def survives(workshop: Workshop, mutant: Mutant) -> bool:
    with workshop.changed(mutant.path, mutant.old, mutant.new):
        if not mutant.path.startswith(("csrc/cpu", "csrc/include")):
            return run(workshop, mutant)
        with objects_kept(workshop, mutant):
            workshop.build()
            return run(workshop, mutant)


def main(part: str = "") -> None:
    began, killed = time.time(), Killed("kernel_mutants")
    chosen = [m for m in MUTANTS if part in f"{m.path} {m.bug} {m.tests}"]
    left = [m for m in chosen if killed.key(m.path, m) not in killed.known]
    workshop = Workshop("mutants")
    workshop.build()
    for sound in {(m.tests, tuple(environment(m).items())): m for m in left}.values():
        if not run(workshop, sound):
            raise SystemExit(f"{sound.tests} {sound.isa}: fails without a mutant")
        print(f"sound: {sound.tests} {sound.isa}", flush=True)
    survivors = []
    for mutant in left:
        started = time.time()
        if survives(workshop, mutant):
            survivors.append(mutant)
        else:
            killed.add(killed.key(mutant.path, mutant))
        verdict = "SURVIVES" if mutant in survivors else "killed"
        print(f"{verdict} {mutant.path}: {mutant.bug} ({time.time() - started:.0f} s)", flush=True)
    if not part:
        write_evidence(
            "kernel_mutants",
            "bugs planted in kernels by hand, and whether the tests notice",
            began,
            mutants=len(chosen),
            killed=len(chosen) - len(survivors),
            killed_by_earlier_runs=len(chosen) - len(left),
            of_each_backend={
                folder: sum(m.path.startswith(folder) for m in chosen)
                for folder in ("csrc/cpu", "csrc/include", "csrc/cuda", "triton_kernels")
            },
            survivors=[f"{m.path}: {m.bug}" for m in survivors],
        )
        page.write(MUTANTS)
    if survivors:
        raise SystemExit(f"{len(survivors)} of {len(chosen)} mutants survive")


if __name__ == "__main__":
    main(*sys.argv[1:])
