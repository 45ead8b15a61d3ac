"""Every allocation of the native kernels fails in turn. Run by tests/test_faults_native.py in a process of
its own, with tests/failing_new.cpp loaded before it: prints how many failed, as JSON."""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyttc.engine import Engine, Paths
from pyttc.engine.decode import Sampler
from pyttc.tree_plan import TreePlan
from tests import tiny_models
from tests.common import same
from tests.kernels import IN_PLACE
from tests.ops import NAMES, fresh, function, sample_inputs, tensors
from tests.pages import check_engine

fail_new = ctypes.CDLL(None).fail_new
fail_new.argtypes, fail_new.restype = [ctypes.c_long, ctypes.c_char_p], ctypes.c_long
MODULE = b"/_C."


def all_fail(call: Callable[[], Any], unchanged: Callable[[], bool]) -> int:
    """Runs `call` with the first allocation failing, the second, and so on until none is left."""
    k = 1
    while True:
        fail_new(k, MODULE)
        try:
            call()
        except MemoryError:
            fail_new(-1, MODULE)
            assert unchanged()
        else:
            assert fail_new(-1, MODULE) < k, "an allocation failed and nobody was told"
            return k - 1
        k += 1


def of_op(name: str, most: int) -> int:
    failed = 0
    samples = [c for c in sample_inputs(name) if c[1].get("impl") in (None, "native")]
    samples = [c for c in samples if not any(t.dtype == torch.float64 for t in tensors(c))]
    for call in samples[:: max(1, len(samples) // most)]:
        given, kwargs = fresh(call)
        kwargs["impl"] = "native"
        before = [t.clone() for t in tensors((given, kwargs))]

        def run(args: Any = given, kwargs: Any = kwargs) -> Any:
            return tensors(function(name)(*args, **kwargs))

        def unchanged(given: Any = (given, kwargs), before: Any = before) -> bool:
            return all(map(same, tensors(given), before))

        if name in IN_PLACE:  # one call that succeeds, the last
            failed += all_fail(run, unchanged)
            continue
        expected = run()
        failed += all_fail(run, unchanged)
        assert all(map(same, run(), expected))
    return failed


def of_plan() -> int:
    """A plan that could not be filled is filled anew, and holds what a fresh one does."""
    ints = [torch.tensor(x) for x in ([-1, 0, 0, 1], [0, 8, 12, 16, 20], range(20))]
    lengths = [torch.tensor([128, 64, 40 + i, 50 + 3 * i]) for i in range(3)]
    leaves = torch.tensor([3, 3, 2, 1, 0, -1])
    plan, failed = TreePlan(16, 4, "cpu"), 0
    for length in lengths:
        tree = (*ints, length, leaves)
        failed += all_fail(lambda tree=tree: plan.fill(tree), lambda: True)
        assert all(map(same, plan.fill(tree), TreePlan(16, 4, "cpu").fill(tree)))
    return failed


def of_pass() -> int:
    """The engine's pass over new tokens of three paths, which are as before or have been run."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine.from_pretrained(tiny_models.make("qwen3", Path(folder)), memory="8MiB")
    root, every = engine.prefill([3, 5] * 16), np.arange(3)  # whole pages: none is copied
    expected, paths = (root.fork(3).append([[4], [5], [6, 7]]) for _ in range(2))
    right, free = expected.logits(every), engine.free_pages
    failed = all_fail(lambda: paths.forward(every), lambda: engine.free_pages == free)
    assert same(paths.logits(every), right)
    return failed


def of_steps() -> int:
    """Steps taken at once, which leave paths as before or have been taken."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine.from_pretrained(tiny_models.make("qwen2", Path(folder)), memory="8MiB")
    root, every = engine.prefill([3, 5] * 16), np.arange(3)
    expected, paths = (root.fork(3).append([[4], [5], [6]]) for _ in range(2))
    never = np.zeros(engine.model.vocab, bool)
    numbers = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}

    def sampler(paths: Paths) -> Sampler:
        made = Sampler(paths, numbers, None, 0, never)
        made.parameters = made._parameters(every)
        return made

    def unchanged() -> bool:
        check_engine(engine, root, expected, paths)
        return bool((paths.new_lengths == 1).all())

    right, steps = sampler(expected)._several(every, 20), sampler(paths)
    found: list[Any] = []
    failed = all_fail(lambda: found.append(steps._several(every, 20)), unchanged)
    assert np.array_equal(found[-1][0], right[0]) and len(right[0]) == 20
    assert same(paths.hidden(), expected.hidden())
    return failed


def main() -> None:
    torch.set_num_threads(2)
    counts = {name: of_op(name, int(sys.argv[1])) for name in NAMES}
    print(
        json.dumps(
            {**counts, "TreePlan": of_plan(), "llama_pass": of_pass(), "llama_steps": of_steps()}
        )
    )


if __name__ == "__main__":
    main()
