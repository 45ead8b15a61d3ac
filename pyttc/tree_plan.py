"""The work list of prefix_tree_attention on a GPU, kept on the device while its tree changes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import _C
from .ops import checks

TILE, ROWS, ROWS_FLOAT32 = 64, 64, 8  # as in the kernels


def paths_of(group: int, dtype: torch.dtype) -> int:
    """How many paths' query heads of a KV head, `group` each, fit the rows of a program."""
    return max(1, (ROWS_FLOAT32 if dtype is torch.float32 else ROWS) // group)


class Capacity(NamedTuple):
    """Room for the lists of every tree that a captured graph is to serve."""

    items: int
    steps: int
    states: int
    granule: int


class TreePlan:
    """The lists that tell a GPU which query rows go through which tiles of tokens, of one tree after
    another, in the same device memory.

    `fill` builds them on the host in C++ (csrc/cpu/tree_plan.h describes them), in pinned memory, and
    takes them to the device in one copy, without waiting for it; only the next `fill` waits, should
    the copy not be over. Where the tree differs from the last one only in leaves that have grown,
    only what that changes is written anew.

    Args:
        page_size: of the trees.
        most_paths: of an item, see `paths_of`.
        device: where the lists are held.
        capacity: None: lists are as long as the tree at hand needs, and memory is taken as it grows.
            Else their shapes never change, so that a captured graph that reads them serves every
            tree that fits; `capacity_for` gives that of a tree.
    """

    def __init__(
        self,
        page_size: int,
        most_paths: int,
        device: torch.device | str,
        capacity: Capacity | None = None,
    ) -> None:
        self.page_size, self.most_paths = page_size, most_paths
        self.device, self.capacity = torch.device(device), capacity
        granule = TILE if capacity is None else capacity.granule
        self._plan = _C.TreePlan(page_size, most_paths, granule)
        self._paths = -1
        self._packed = self._there = torch.empty(0)  # all lists, on the host and on the device
        self._host: list[torch.Tensor] = []
        self._memory: list[torch.Tensor] = []
        self._lists: list[torch.Tensor] = []
        self._shape = (-1, -1, -1, -1)
        self._copied: torch.cuda.Event | None = None  # once the device has what the host wrote
        self.grown = False  # whether the last fill only wrote what had grown

    def fill(self, tree: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Makes this the plan of a tree, given as its parents, page_offsets, page_ids, lengths and leaves on
        the CPU, and returns the lists: items, steps, slots, paths, and a tensor without elements
        that has a row a state.

        The lists of an earlier call are this plan's memory too: they then hold the new tree.

        Raises:
            ValueError: for what is wrong with the tree, or if it does not fit the capacity.
            RuntimeError: while a CUDA graph is being captured, which would keep this tree's plan.
        """
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a plan is made before a graph is captured: see PrefixTree.plan")
        if self._copied is not None:
            self._copied.synchronize()
        paths = tree[4].shape[0]
        if self._paths < 0 or (self.capacity is None and paths != self._paths):
            items, steps, _, granule = self.capacity or (64, 512, 0, 16)
            self._reserve(items, steps, steps * TILE // granule, paths)
        elif paths != self._paths:
            checks.fail("leaves", f"{paths} paths", f"{self._paths}, which the plan was made for")
        items, steps, states, granule, self.grown, fits = self._plan.fill(*tree, *self._host)
        if self.capacity is not None:
            need = Capacity(items, steps, states, granule)
            if not fits or states > self.capacity.states or granule < self.capacity.granule:
                checks.fail("capacity", self.capacity, f"one that holds {need}")
            items, steps, states, granule = self.capacity
        elif not fits:
            self._reserve(2 * items, 2 * steps, 2 * steps * TILE // granule, paths)
            self._plan.fill(*tree, *self._host)
            self.grown = False
        if self._there is not self._packed:
            self._there.copy_(self._packed, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(self.device))
        shape = (items, steps, states, granule)
        if shape != self._shape:
            tokens = TILE // granule
            all_items, all_steps, all_slots, all_paths = self._memory
            self._lists = [
                all_items.as_strided((items, 5), (5, 1)),
                all_steps.as_strided((steps, 4), (4, 1)),
                all_slots.as_strided((steps, tokens), (tokens, 1)),
                all_paths.view(paths, 3),
                torch.empty(states, 0, device=self.device),
            ]
            self._shape = shape
        return self._lists

    def _reserve(self, items: int, steps: int, slots: int, paths: int) -> None:
        # Each list begins at 16 bytes, whatever the others' sizes: kernels are compiled for that.
        sizes = [-(-n // 4) * 4 for n in (items * 5, steps * 4, slots)] + [paths * 3]
        on_host = self.device.type == "cpu"
        self._packed = torch.zeros(
            sum(sizes), dtype=torch.int32, device="cpu", pin_memory=not on_host
        )
        self._there = (
            self._packed if on_host else torch.zeros_like(self._packed, device=self.device)
        )
        self._host = list(self._packed.split(sizes))
        self._memory = list(self._there.split(sizes))
        self._paths, self._shape = paths, (-1, -1, -1, -1)


def capacity_for(plan: list[torch.Tensor], times: float = 1.0) -> Capacity:
    """The capacity of a plan, or `times` as much."""
    items, steps, slots, _, states = plan
    room = [int(times * part.shape[0]) for part in (items, steps, states)]
    return Capacity(room[0], room[1], room[2], TILE // slots.shape[1])
