"""What the child processes share. Each loads a model once and answers requests: JSON lines on pipes.

    python -m benchmarks.peers.<module> MODEL THREADS DTYPE

MODEL is a folder as transformers saves one. The first line says what was loaded; then each request
{"prompt": [ids], "paths": N, "steps": S} is answered by what `answer` returns. Needs Python alone, since it
runs in the environments of all peers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

TEMPERATURE, TOP_K = 0.8, 50


class Skip(Exception):
    """A peer cannot run what it is asked to; says why."""


class Peer(Protocol):
    package: str  # as pip knows it

    def __init__(self, model: Path, threads: int, dtype: str) -> None: ...

    def decode(
        self, prompt: list[int], paths: int, steps: int, mark: Callable[..., None]
    ) -> list[list[int]]:
        """Draws 1 + steps tokens for each path, with TEMPERATURE and TOP_K, past any end of text; calls
        `mark` when all paths have their first token and after each step, or `mark(n)` after n steps that it
        takes at once, and which are said to have taken an n-th each. What is known of the prompt from before
        may be used again."""


def answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    """tokens [paths][1 + steps]; wall and cpu: seconds until all paths had the first, then of each step,
    cpu that of the whole process; peak_mib: the most memory held."""
    wall: list[float] = []
    cpu: list[float] = []
    forget_peak()
    last = time.perf_counter(), time.process_time()

    def mark(steps: int = 1) -> None:
        nonlocal last
        now = time.perf_counter(), time.process_time()
        for taken, before, after in zip((wall, cpu), last, now):  # noqa: B905
            taken += [(after - before) / steps] * steps
        last = now

    try:
        tokens = peer.decode(request["prompt"], request["paths"], request["steps"], mark)
    except Skip as why:
        return {"skip": str(why)}
    return {
        "tokens": [[int(token) for token in path] for path in tokens],
        "wall": wall,
        "cpu": cpu,
        "peak_mib": memory("VmHWM"),
    }


def memory(name: str, file: str = "/proc/self/status") -> int | None:
    """MiB of VmRSS or VmHWM of this process, or of MemAvailable in /proc/meminfo, where the system tells."""
    status = Path(file)
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) >> 10


def forget_peak() -> None:
    """VmHWM becomes what is held now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def serve(kind: type[Peer]) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    model, threads, dtype = sys.argv[1:]
    peer = kind(Path(model), int(threads), dtype)
    loaded = {"engine": f"{kind.package} {version(kind.package)}", "loaded_mib": memory("VmRSS")}
    answers.write(json.dumps(loaded) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(answer(peer, json.loads(line))) + "\n")
