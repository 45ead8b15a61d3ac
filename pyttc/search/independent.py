"""Independent: strategies whose paths know nothing of each other."""

from __future__ import annotations

from typing import Any

from .tree import SearchTree


class Independent:
    """Base of a strategy whose `run` does no more than finish `n` paths a prompt, score them by its field
    `score` if it has one, and prefer one of them as `pick` does.

    `curve` takes it at its word: it draws the paths itself, once for all sizes, and asks `pick` of any
    part of them. A strategy that forks, drops or appends is none.
    """

    def pick(self, tree: SearchTree, nodes: list[int]) -> int | None:
        """The answer among paths of one prompt, given as the nodes at which they ended; None for none."""
        raise NotImplementedError(f"{type(self).__name__}: an Independent strategy needs a pick")


def is_independent(strategy: Any) -> bool:
    """Whether a strategy is `Independent`, and its `run` the one that its `pick` was written for: not one
    that a subclass put in its place."""
    kind = type(strategy)
    if not isinstance(strategy, Independent) or not hasattr(kind, "run"):
        return False
    run, pick = (next(c for c in kind.__mro__ if name in vars(c)) for name in ("run", "pick"))
    return issubclass(pick, run)
