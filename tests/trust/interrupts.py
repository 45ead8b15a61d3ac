"""Presses Ctrl-C at random moments of searches that keep a journal.

    python -m tests.trust.interrupts [--moments 200]

After each, no page is held, the handler of Ctrl-C is what it was, the same search gives the same bits, and
the one that was interrupted, taken up from its journal, ends as if it had not been. The counts are left in
docs/trust.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from pyttc import Engine
from pyttc.search import events
from pyttc.tasks import countdown_search as countdown
from pyttc.tasks.countdown_text import prompt
from tests.countdown_models import PROBLEMS, teach
from tests.resumed import solve
from tests.trust.evidence import write_evidence

NAMES = ("beam", "sample-n", "particle-filter", "asc", "lookahead")
PROMPTS = [prompt(problem) for problem in PROBLEMS]


def pressed(after: float, engine: Any, head: Any, name: str, journal: Path) -> bool:
    """Presses Ctrl-C so many seconds into a search; whether that came before its end."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, after)
            solve(engine, PROMPTS, name, head, journal=journal)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.signal(signal.SIGALRM, before)
    return False


def interrupt(engine: Any, head: Any, folder: Path, moments: int) -> dict[str, int]:
    """Counts of what was pressed; AssertionError for anything that is not as it was."""
    counts = {"moments": 0, "within_a_search": 0, "resumed_from_records": 0}
    draw, handler = np.random.default_rng(0), signal.default_int_handler
    signal.signal(signal.SIGINT, handler)  # a process in the background ignores it
    # every event is written at once; that it reaches the disk does not matter here
    with mock.patch.object(events, "SECONDS", 0.0), mock.patch.object(os, "fsync"):
        expected = {name: solve(engine, PROMPTS, name, head) for name in NAMES}
        gc.collect()
        free = engine.free_pages
        for moment in range(moments):
            name, path = NAMES[moment % len(NAMES)], folder / f"{moment}.journal"
            begun = time.monotonic()
            assert solve(engine, PROMPTS, name, head) == expected[name], (moment, name)
            after = draw.uniform(1e-4, time.monotonic() - begun)
            hit = pressed(after, engine, head, name, path)
            assert signal.getsignal(signal.SIGINT) is handler
            gc.collect()
            assert engine.free_pages == free, (moment, name, after)
            written = path.read_bytes().count(b"\n") if path.exists() else 0
            assert solve(engine, PROMPTS, name, head, journal=path) == expected[name], (
                moment,
                name,
            )
            path.unlink()
            counts["moments"] += 1
            counts["within_a_search"] += hit
            counts["resumed_from_records"] += hit and written > 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=200)
    args, began = parser.parse_args(), time.time()
    with tempfile.TemporaryDirectory() as at:
        folder = teach(Path(at) / "taught")
        engine = Engine.from_pretrained(folder, "cpu", memory="128MiB")
        counts = interrupt(engine, countdown.reward_head(folder), Path(at), args.moments)
    print(json.dumps(counts))
    what = "Ctrl-C at random moments of a search: no page held, the same bits after it and from the journal"
    write_evidence("interrupts", what, began, **counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
