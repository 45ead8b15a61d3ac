"""The record of a search: every path it ever had, as a tree of steps with scores and ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Node:
    """One step of one path: the tokens between two points at which the search looked.

    Attributes:
        parent: index of the step before it in the tree, -1 for the first step after a prompt.
        prompt: index of the prompt.
        path: id of the path that wrote it.
        text, tokens: what was written, appended tokens too.
        logprob: sum of the log-probabilities of its sampled tokens.
        score: what the strategy's scorer said of the path up to here, None if it was not asked.
        end: why the path stopped here for good; "" if it went on. "eos": it met the model's end of text, or
            a text of `until`; "length", "context", "invalid": as for Paths; "dropped": not selected; "tool":
            the tool refused it; "room": no room for the tool's reply; "solved": another path of its prompt
            was verified; else the budget's limit, or "interrupted".
        verified: what the verifier said of the whole path, None if it was not asked.
    """

    parent: int
    prompt: int
    path: int
    text: str
    tokens: list[int]
    logprob: float
    score: float | None = None
    end: str = ""
    verified: bool | None = None


@dataclass
class SearchTree:
    """All steps of a run. Node indices are positions in `nodes`; a parent comes before its children.

    Attributes:
        best: of each prompt, the node of the answer, -1 for none.
        about: what the run was: strategy, model, seed and the like, as short texts.
    """

    prompts: list[str]
    nodes: list[Node] = field(default_factory=list)
    best: list[int] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)

    def line(self, index: int) -> list[Node]:
        """The steps from the prompt to a node."""
        steps = []
        while index >= 0:
            steps.append(self.nodes[index])
            index = steps[-1].parent
        return steps[::-1]

    def text(self, index: int) -> str:
        """All that the path to a node wrote."""
        return "".join(step.text for step in self.line(index))

    def children(self) -> list[list[int]]:
        """Of each node, and last of the prompts as one, the nodes that follow it."""
        below: list[list[int]] = [[] for _ in range(len(self.nodes) + 1)]
        for index, node in enumerate(self.nodes):
            below[node.parent].append(index)
        return below

    def save(self, path: str | Path) -> None:
        """Writes JSON to `path`: all of it, or nothing and OSError, and then what was there stays."""
        from .saved import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> SearchTree:
        """Reads what `save` wrote. The file need not be trusted: everything in it is checked.

        Raises:
            ValueError: for a file of another format, version or shape, or one that is too large.
            OSError: for one that cannot be read.
        """
        from .saved import load

        return load(Path(path))
