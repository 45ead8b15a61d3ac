"""Looks for races of Triton kernels that run in the interpreter: two accesses of one address, a write among
them, that nothing puts in order. In order are launches and, within a program, what a barrier is between; not
programs of a launch, nor the elements of a program's tensors between two barriers, which are any thread's.
(A reduction over several warps holds a barrier too. It is not counted: a layout may make it go.) Atomics and
volatile loads are in order with each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from triton.runtime import interpreter

Builder = interpreter.InterpreterBuilder
BARRIER = "create_barrier" if hasattr(Builder, "create_barrier") else "create_debug_barrier"
READ, ATOMIC, WRITE = 0, 1, 2


class Race(AssertionError):
    pass


def conflicts(address: np.ndarray, kind: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Addresses that several owners access, unless all read them or all do so by atomics."""
    order = np.argsort(address, kind="stable")
    address, kind, owner = address[order], kind[order], owner[order]
    first = np.flatnonzero(np.r_[True, address[1:] != address[:-1]]) if address.size else order
    if not first.size:
        return first
    several = np.minimum.reduceat(owner, first) != np.maximum.reduceat(owner, first)
    least, most = np.minimum.reduceat(kind, first), np.maximum.reduceat(kind, first)
    return address[first[several & (most > READ) & ~((least == ATOMIC) & (most == ATOMIC))]]


class Accesses:
    """Of one launch: those since the last barrier, each its own owner, and all, whose owners are programs."""

    def __init__(self) -> None:
        self.program = -1
        self.now: list[tuple[np.ndarray, int]] = []
        self.all: list[tuple[np.ndarray, int, int]] = []

    def add(self, pointers: Any, mask: Any, kind: int) -> None:
        live = np.broadcast_to(mask.data, pointers.data.shape)
        address = pointers.data[live].astype(np.int64)
        if kind == WRITE and len(np.unique(address)) < address.size:
            raise Race("one store writes an address twice")
        self.now.append((np.unique(address), kind))

    def barrier(self) -> None:
        if not self.now:
            return
        sizes = [len(address) for address, _ in self.now]
        address = np.concatenate([address for address, _ in self.now])
        kind = np.repeat([kind for _, kind in self.now], sizes)
        if conflicts(address, kind, np.repeat(np.arange(len(sizes)), sizes)).size:
            raise Race("two accesses of a program, with no barrier between")
        self.all += [(address, kind, self.program) for address, kind in self.now]
        self.now = []

    def next_program(self) -> None:
        self.barrier()
        self.program += 1

    def end(self) -> None:
        self.barrier()
        if not self.all:
            return
        sizes = [len(address) for address, _, _ in self.all]
        address = np.concatenate([address for address, _, _ in self.all])
        kind = np.repeat([kind for _, kind, _ in self.all], sizes)
        owner = np.repeat([program for _, _, program in self.all], sizes)
        if conflicts(address, kind, owner).size:
            raise Race("two programs of a launch")


@contextmanager
def looked_for() -> Iterator[None]:
    """Raises Race for a kernel that runs within it and has one."""
    launch = Accesses()
    load, store = Builder.create_masked_load, Builder.create_masked_store
    atomic, index, run = (
        Builder.create_atomic_rmw,
        Builder.set_grid_idx,
        interpreter.GridExecutor.__call__,
    )

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        launch.add(pointers, mask, ATOMIC if rest[-1] else READ)
        return load(self, pointers, mask, *rest)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launch.add(pointers, mask, WRITE)
        return store(self, pointers, value, mask, *rest)

    def atomic_rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launch.add(pointers, mask, ATOMIC)
        return atomic(self, op, pointers, value, mask, *rest)

    def set_grid_idx(self: Any, *at: int) -> None:
        launch.next_program()
        index(self, *at)

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal launch
        launch = Accesses()
        run(self, *args, **kwargs)
        launch.end()

    changes = {
        "create_masked_load": masked_load,
        "create_masked_store": masked_store,
        "create_atomic_rmw": atomic_rmw,
        "set_grid_idx": set_grid_idx,
        BARRIER: lambda self: launch.barrier(),
    }
    before = {name: getattr(Builder, name) for name in changes}
    try:
        for name, change in changes.items():
            setattr(Builder, name, change)
        interpreter.GridExecutor.__call__ = call
        yield
    finally:
        for name, original in before.items():
            setattr(Builder, name, original)
        interpreter.GridExecutor.__call__ = run
