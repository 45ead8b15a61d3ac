"""PrefixTree: which pages of a KV pool each path of a forest attends to."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .ops import checks
from .tree_plan import TreePlan, paths_of

if TYPE_CHECKING:
    import numpy

    Ints = Sequence[int] | torch.Tensor | numpy.ndarray[Any, Any]


class PrefixTree:
    """A forest of token runs over a pool of pages, and the paths that end in it.

    Node i holds lengths[i] tokens in the pool pages pages[i], in order, and starts on a page of its
    own; its last page may be part full and more pages than needed may be listed: what is past its
    length is never read. A path is the tokens from a root to leaves[n], all of them; positions
    count from the root.

    Args:
        parents: of each node the node above it, -1 for a root. Any order, no cycles.
        pages: of each node the ids of its pages: at least ceil(lengths[i] / page_size).
        lengths: of each node its number of tokens, 0 allowed.
        leaves: of each path the node it ends in, -1 for a path without tokens. Nodes may be named
            by several paths, or by none, and need not be leaves of the forest.
        page_size: tokens a page, 1 to 256.
        device: where the tensors are held, by default the CPU.

    Each may be a list, a tensor or a numpy array; `pages` a list of them. Everything is checked
    here but the page ids, which the ops check against the pool. `from_tensors` takes ready tensors
    unchecked.

    Attributes:
        parents, lengths [nodes], page_offsets [nodes + 1], page_ids, leaves [paths]: int32 tensors;
            the pages of node i are page_ids[page_offsets[i] : page_offsets[i + 1]].
        page_size: int.

    Raises:
        ValueError: naming the argument that is wrong, and where.
    """

    parents: torch.Tensor
    page_offsets: torch.Tensor
    page_ids: torch.Tensor
    lengths: torch.Tensor
    leaves: torch.Tensor
    page_size: int
    _host: tuple[torch.Tensor, ...] | None  # the five, on the CPU
    _plans: dict[tuple[int, int, torch.device], Planned]  # by what a TreePlan is made of

    def __init__(
        self,
        parents: Ints,
        pages: Sequence[Ints],
        lengths: Ints,
        leaves: Ints,
        page_size: int,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(page_size, int) or not 1 <= page_size <= 256:
            checks.fail("page_size", page_size, "1 to 256")
        up, tokens, ends = (
            ints("parents", parents),
            ints("lengths", lengths),
            ints("leaves", leaves),
        )
        nodes = up.numel()
        if len(pages) != nodes:
            checks.fail("pages", f"{len(pages)} lists", f"{nodes}, one a node")
        if tokens.numel() != nodes:
            checks.fail("lengths", f"{tokens.numel()} lengths", f"{nodes}, one a node")
        within("parents", up, -1, nodes - 1)
        within("leaves", ends, -1, nodes - 1)
        within("lengths", tokens, 0, 2**31 - 1)
        counts = torch.tensor([len(p) for p in pages], dtype=torch.int64, device="cpu")
        short = (counts * page_size < tokens).nonzero()
        if short.numel():
            i = int(short[0])
            checks.fail(
                "pages",
                f"{int(counts[i])} pages for node {i}",
                f"at least {-(-int(tokens[i]) // page_size)} for its {int(tokens[i])} tokens",
            )
        # Climbing twice as far each time: after `nodes` steps everyone has left a forest.
        above = up
        for _ in range(nodes.bit_length()):
            above = torch.where(above >= 0, above[above], above)
        looped = (above >= 0).nonzero()
        if looped.numel():
            i = int(looped[0])
            checks.fail(
                "parents", f"{int(up[i])} for node {i}", "a forest, but it leads to a cycle"
            )
        if nodes and isinstance(pages[0], torch.Tensor):
            ids = torch.cat([ints("pages", p) for p in pages])
        else:
            ids = ints("pages", list(chain.from_iterable(pages)))
        within("pages", ids, -(2**31), 2**31 - 1)
        offsets = torch.zeros(nodes + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(counts, 0, out=offsets[1:])
        self._host = up, offsets, ids, tokens, ends
        self._plans = {}
        self.parents, self.lengths, self.leaves, self.page_offsets, self.page_ids = (
            t.to(device, torch.int32) for t in (up, tokens, ends, offsets, ids)
        )
        self.page_size = page_size

    @classmethod
    def from_tensors(
        cls,
        parents: torch.Tensor,
        page_offsets: torch.Tensor,
        page_ids: torch.Tensor,
        lengths: torch.Tensor,
        leaves: torch.Tensor,
        page_size: int,
        host: tuple[torch.Tensor, ...] | None = None,
    ) -> PrefixTree:
        """A tree of ready int32 or int64 tensors of one device, held as they are, not checked here:
        the ops check shapes and dtypes, and on the CPU values too, on every call.

        `host`: the same five tensors on the CPU, for those who have them: then nobody has to wait for a
        GPU to read them back.
        """
        tree = cls.__new__(cls)
        tree.parents, tree.page_offsets, tree.page_ids = parents, page_offsets, page_ids
        tree.lengths, tree.leaves, tree.page_size = lengths, leaves, page_size
        tree._host = host
        tree._plans = {}
        return tree

    def plan(self, q: torch.Tensor, k_pages: torch.Tensor) -> list[torch.Tensor]:
        """The work list of `prefix_tree_attention` on a GPU for these heads: made at the first call and
        kept, so that all layers of a model share it. Call it before a CUDA graph that attends over the
        tree is captured. A tree made by `from_tensors` of device tensors alone is read back for it,
        which waits for the device.
        """
        most_paths = paths_of(q.shape[1] // k_pages.shape[2], q.dtype)
        key = (self.page_size, most_paths, self.parents.device)
        made = self._plans.get(key)
        if made is None or made.tree is not self:
            plan = made.plan if made else TreePlan(*key)
            made = self._plans[key] = Planned(self, plan, plan.fill(self.host()))
        return made.lists

    def host(self) -> tuple[torch.Tensor, ...]:
        """parents, page_offsets, page_ids, lengths and leaves on the CPU."""
        if self._host is None:
            held = self.parents, self.page_offsets, self.page_ids, self.lengths, self.leaves
            self._host = tuple(t.cpu() for t in held)
        return self._host

    def follow(self, before: PrefixTree) -> None:
        """Gives this tree the plans of the one before it, which then hold this one: where paths have only
        grown in between, that is a fraction of the work. Asked again, `before` takes them back.
        """
        self._plans = before._plans

    def to(self, device: torch.device | str) -> PrefixTree:
        """The same tree with its tensors on `device`."""
        return PrefixTree.from_tensors(
            self.parents.to(device),
            self.page_offsets.to(device),
            self.page_ids.to(device),
            self.lengths.to(device),
            self.leaves.to(device),
            self.page_size,
            self._host,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles leave the plans behind, which live on a device."""
        tensors = self.parents, self.page_offsets, self.page_ids, self.lengths, self.leaves
        return PrefixTree.from_tensors, (*tensors, self.page_size, self._host)

    def __repr__(self) -> str:
        return (
            f"PrefixTree({self.parents.shape[0]} nodes, {self.leaves.shape[0]} paths, "
            f"page_size={self.page_size}, device={self.parents.device})"
        )


class Planned(NamedTuple):
    """A plan, and the tree whose lists it holds."""

    tree: PrefixTree
    plan: TreePlan
    lists: list[torch.Tensor]


def ints(name: str, values: Ints) -> torch.Tensor:
    if isinstance(values, torch.Tensor) and values.is_meta:
        checks.fail(name, "a tensor on meta", "one that holds its values")
    try:
        tensor = torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TypeError(
            f"{name}: got {reprlib.repr(values)}, expected integers of 64 bits"
        ) from error
    if tensor.numel() == 0:
        tensor = tensor.to(torch.int64)
    if tensor.dim() != 1:
        checks.fail_shape(name, tensor, "one dimension")
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype is torch.bool:
        checks.fail_dtype(name, tensor, "integers")
    return tensor.to(torch.int64)


def within(name: str, values: torch.Tensor, low: int, high: int) -> None:
    wrong = ((values < low) | (values > high)).nonzero()
    if wrong.numel():
        i = int(wrong[0])
        checks.fail(name, f"{int(values[i])} at {i}", f"{low} to {high}")
