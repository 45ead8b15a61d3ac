"""Do the tests notice small changes to the Python code? A sample of all that tests/trust/operators.py can
make of the ops, the sampler and the cache; each is run in a process of its own on that module's tests::

    python -m tests.trust.python_mutants                 a sample of each module, and the evidence
    python -m tests.trust.python_mutants store_kv        of these, the others as they were last
    python -m tests.trust.python_mutants store_kv 40     40 of a module's (0: all), no evidence

torch and pytest are loaded once and each process is a fork, which loads the package itself."""

from __future__ import annotations

import ast
import importlib.machinery
import json
import math
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis  # noqa: F401
import numpy  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import torch._dynamo.testing
import torch.testing._internal.optests  # noqa: F401

from .killed import ROOT, Killed
from .operators import Mutation, mutations

WHAT = "small changes to the Python code, and whether the tests notice: a random sample"
RESULTS = ROOT / "build/python_mutants.json"  # of each module's latest run
SECONDS = 120  # of the processor for the tests of a mutant; a loop without end has been noticed
PATIENCE = 1200  # seconds in all, for one that waits
SHARE = 0.12  # of a module's mutants
SKIP = ("run_cuda",)  # the emulation of CUDA runs it, in a process of its own
LEFT_OUT = ("instruction", "amx", "memory", "speed", "64_bit", "compile", "microseconds")
QUICK = " and ".join(f"not {part}" for part in LEFT_OUT)  # tests by name
OPS = (
    "merge_states",
    "store_kv",
    "copy_pages",
    "topk_score",
    "select_beams",
    "sample",
    "shared_prefix_attention",
    "prefix_tree_attention",
    "lm_head_topk",
)
SAME = "test_a_path_is_the_same_whatever_n_neighbours_order_and_sharing"
ENGINE = [
    "tests/test_cache.py",
    "tests/test_paths.py",
    "tests/test_decode.py",
    f"tests/test_engine.py::{SAME}",
]


def of_op(name: str) -> list[str]:
    common = (
        "invalid_calls.py::test_declared",
        "opcheck.py::test_defaults_are_those_of_the_schema",
    )
    common += ("opcheck.py::test_opcheck", "invalid_calls.py::test_spoiled_calls")
    return [f"tests/test_{name}.py", *(f"tests/test_{test}[{name}]" for test in common)]


MODULES: dict[str, list[str]] = {
    **{f"pyttc/ops/{name}.py": of_op(name) for name in OPS},
    "pyttc/ops/philox.py": ["tests/test_sample.py"],
    "pyttc/ops/sampling.py": [*of_op("sample"), *of_op("lm_head_topk")],
    "pyttc/ops/checks.py": [
        "tests/test_overlap.py",
        "tests/test_invalid_calls.py::test_declared",
        "tests/test_invalid_calls.py::test_spoiled_calls",
    ],
    "pyttc/engine/cache.py": ENGINE,
    "pyttc/engine/pool.py": ["tests/test_pool.py", *ENGINE],
    "pyttc/engine/tree.py": ["tests/test_tree_builder.py", *ENGINE],
}


def silent() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)


def load_instead(path: Path, tree: ast.Module) -> None:
    """Imports of a file get this tree."""
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, name: str) -> object:
        if Path(self.path) == path:
            return compile(tree, str(path), "exec")
        return original(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def outcome(path: str, tree: ast.Module) -> str:
    """What the module's tests say of a tree of its code, in a process of its own."""
    assert "pyttc" not in sys.modules  # a fork would have the code as it is
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setpgrp()
            silent()
            resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            load_instead(ROOT / path, tree)
            options = ["-x", "-q", "-W", "ignore", "-p", "no:cacheprovider", "-k", QUICK]
            code = int(pytest.main([*options, *MODULES[path]]))
        finally:
            os._exit(code)
    end = time.time() + PATIENCE
    while time.time() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return "survives" if code == 0 else "killed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed"


def survivors(path: str, wanted: Callable[[int], int]) -> tuple[int, int, list[dict[str, object]]]:
    """How many mutants a module has, how many were tried, and those that survive."""
    tree = ast.parse((ROOT / path).read_text())
    found = list(mutations(tree, skip=SKIP))
    if outcome(path, tree) != "survives":
        raise SystemExit(f"{path}: its tests fail without a mutant")
    # A larger sample holds the smaller ones.
    tried = random.Random(path).sample(found, len(found))[: wanted(len(found))]
    alive, killed = [], Killed("python_mutants")
    for mutation in tried:
        key = killed.key(path, (mutation.line, found.index(mutation)))
        if key in killed.known:
            continue
        if not survives(path, tree, mutation):
            killed.add(key)
        else:
            alive.append({"line": mutation.line, "in": mutation.function, "what": mutation.what})
            print(f"  {path}:{mutation.line} {mutation.function}: {mutation.what}", flush=True)
    return len(found), len(tried), alive


def survives(path: str, tree: ast.Module, mutation: Mutation) -> bool:
    mutation.make()
    ast.fix_missing_locations(tree)
    try:
        return outcome(path, tree) == "survives"
    finally:
        mutation.undo()


def interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's, at 95 %."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return round(middle - half, 4), round(middle + half, 4)


def main(part: str = "", count: str = "") -> None:
    began = time.time()
    os.environ |= {"PYTTC_EXAMPLES": "20", "OMP_NUM_THREADS": "1"}
    os.chdir(ROOT)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    wanted: Callable[[int], int] = lambda n: math.ceil(n * SHARE)  # noqa: E731
    if count:
        wanted = lambda n: int(count) or n  # noqa: E731
    for path in MODULES:
        if part not in path:
            continue
        started = time.time()
        number, tried, alive = survivors(path, wanted)
        killed = tried - len(alive)
        print(f"{path}: {killed} of {tried} killed ({time.time() - started:.0f} s)", flush=True)
        if not count:
            counts = {"mutants": number, "tried": tried, "killed": killed, "survivors": alive}
            results[path] = {**counts, "seconds": round(time.time() - started)}
            RESULTS.write_text(json.dumps(results))
    if count:
        return
    from . import page  # loads the package, as the next does
    from .evidence import write_evidence
    from .kernel_mutants import MUTANTS

    write_evidence("python_mutants", WHAT, began, **summary(results))
    page.write(MUTANTS)


def summary(results: dict[str, dict[str, Any]]) -> dict[str, object]:
    total = {
        name: sum(of[name] for of in results.values()) for name in ("mutants", "tried", "killed")
    }
    return {
        **total,
        "killed_share_95_percent": interval(total["killed"] / total["tried"], total["tried"]),
        "modules": {path: {name: of[name] for name in total} for path, of in results.items()},
        "modules_not_run": [path for path in MODULES if path not in results],
        "survivors": {path: of["survivors"] for path, of in results.items()},
        "seconds_of_all_runs": sum(of["seconds"] for of in results.values()),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
