"""What several tests share."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pyttc import _C

# Instruction sets, each above those before it.
LEVELS = ("generic", "avx2", "avx512", "avx512bf16", "amx")
# Hypothesis examples an axis: 200 on every push, more in the nightly script.
EXAMPLES = int(os.environ.get("PYTTC_EXAMPLES", 200))


def spread(tensor: torch.Tensor, last: int = 1) -> torch.Tensor:
    """The same values with gaps between rows and the first two dimensions swapped in memory. The gaps
    hold NaN (integers: a huge value). `last` is the stride of the last dimension.
    """
    poison = float("nan") if tensor.is_floating_point() else 2**30
    shape = list(tensor.shape)
    swap = len(shape) >= 3
    if swap:
        shape[0], shape[1] = shape[1], shape[0]
    shape[-1] = (shape[-1] + 3) * last
    memory = torch.full([n + 1 for n in shape[:-1]] + shape[-1:], poison, dtype=tensor.dtype)
    if swap:
        memory = memory.transpose(0, 1)
    view = memory[tuple(slice(n) for n in tensor.shape[:-1])][..., ::last][..., : tensor.shape[-1]]
    return view.copy_(tensor)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, NaNs too."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (
        torch.empty(t.shape, dtype=t.dtype).copy_(t).flatten().view(torch.uint8) for t in (a, b)
    )
    return torch.equal(a, b)


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest(
    run: Callable[[], object],
    enough: float,
    after: Callable[[], object] = lambda: None,
    patience: float = 30,
) -> float:
    """The least of many repeats' seconds of thread time, `after` each something that does not count. A
    busy machine only ever adds, sometimes for seconds: repeats go on until one is `enough`, or until
    `patience` seconds are over.
    """
    best, end = float("inf"), time.monotonic() + patience
    while best > enough and time.monotonic() < end:
        for _ in range(20):
            start = time.thread_time()
            run()
            best = min(best, time.thread_time() - start)
            after()
    return best


def run_below(level: str, file: str, tests: str, examples: int = 25) -> None:
    """Runs the tests of a file that match an expression on an instruction set below the one in use."""
    if LEVELS.index(level) >= LEVELS.index(_C.isa()):
        pytest.skip("not below the instruction set in use, which all other tests run")
    environment = {**os.environ, "PYTTC_CPU_ISA": level, "PYTTC_EXAMPLES": str(examples)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", tests, file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:]


def written(paths: Any) -> list[list[int]]:
    """The tokens of each of `Paths`."""
    return [[t for t in row if t >= 0] for row in paths.tokens.tolist()]
