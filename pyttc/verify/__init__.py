"""`pyttc verify`: what this package promises, tried on this machine.

Every implementation that can run here against the reference in float64; the bits that must not
depend on batch, order, neighbours, strides, threads or how a prefix is cut; the draws against an
exact inverse CDF and their distribution; the cache against a plain model; one model end to end with
sharing on and off. Everything is seeded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..dispatch import IMPLS, ops


@dataclass
class Check:
    """One promise: how many things were compared, what was wrong (nothing, if it holds), and how
    long it took."""

    name: str
    compared: int
    unit: str
    failures: list[str]
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.failures


Found = tuple[int, list[str]]  # things compared, failures


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def implementations(op: str, device: str) -> list[str]:
    """What can serve `op` on `device`, the reference left out."""
    probe = torch.empty(0, device=device)
    return [i for i in IMPLS if i != "reference" and ops[op].refusal(i, probe) is None]


def checks() -> list[tuple[str, str, Callable[[], Found]]]:
    """Name, unit and function of each check."""
    from . import bits, draws, kernels, models, pages

    found: list[tuple[str, str, Callable[[], Found]]] = []
    for device in devices():
        for op in sorted(ops):
            for impl in implementations(op, device):
                found.append(
                    (
                        f"{op}, {impl} against the reference",
                        "numbers",
                        kernels.against_reference(op, impl, device),
                    )
                )
    for device in devices():
        for impl in ("native", "triton", "cuda"):
            for axis, run in bits.axes(impl, device):
                found.append((f"bits, {impl}: {axis}", "numbers", run))
    found.append(("Philox against known answers", "words", draws.known_answers))
    for device in devices():
        found.append(
            (f"draws on {device} against an exact inverse CDF", "draws", draws.exact(device))
        )
        found.append((f"distribution of draws on {device}", "draws", draws.distribution(device)))
    found.append(
        (
            "pages: nothing lost, freed twice or seen by another path",
            "operations",
            pages.random_operations,
        )
    )
    for device in devices():
        found.append(
            (
                f"a model on {device}: sharing, batch and order of paths",
                "tokens",
                models.sharing(device),
            )
        )
    return found


def verify() -> Iterator[Check]:
    """Runs every check, one after the other; an exception in one is a failure of it."""
    for name, unit, run in checks():
        start = time.perf_counter()
        try:
            compared, failures = run()
            if not compared:
                failures = ["nothing was compared"]
        except Exception as error:
            compared, failures = 0, [f"{type(error).__name__}: {error}"]
        yield Check(name, compared, unit, failures, time.perf_counter() - start)


def differ(what: str, got: Any, expected: Any) -> Found:
    """Bit for bit, NaN included."""
    count, failures = 0, []
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        count += a.numel()
        if a.shape != b.shape or not torch.equal(a.cpu().nan_to_num(7.5), b.cpu().nan_to_num(7.5)):
            failures.append(f"{what}: output {i} differs")
    return count, failures
