"""The record of a search: every path it ever had, as a tree of steps with scores and ends."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1


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
        end: why the path stopped here for good ("eos", "length", "dropped", "tokens", ...); "" if it went on.
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
    """All steps of a run. Node indices are positions in `nodes`; a parent comes before its children."""

    prompts: list[str]
    nodes: list[Node] = field(default_factory=list)

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
        """Writes JSON to `path`, and the tokens beside it as safetensors (path with that suffix)."""
        from safetensors.numpy import save_file

        target = Path(path)
        sizes = np.array([len(node.tokens) for node in self.nodes], np.int64)
        tokens = np.array([t for node in self.nodes for t in node.tokens], np.int32)
        save_file({"tokens": tokens, "sizes": sizes}, str(target.with_suffix(".safetensors")))
        nodes = [{k: v for k, v in asdict(node).items() if k != "tokens"} for node in self.nodes]
        held = {"version": VERSION, "prompts": self.prompts, "nodes": nodes}
        partial = target.with_suffix(target.suffix + ".part")
        partial.write_text(json.dumps(held, ensure_ascii=False), encoding="utf-8")
        partial.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> SearchTree:
        """Reads what `save` wrote.

        Raises:
            ValueError: for a file of another version or shape.
        """
        from safetensors.numpy import load_file

        source = Path(path)
        held: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
        if not isinstance(held, dict) or held.get("version") != VERSION:
            raise ValueError(f"{source}: not a search tree of version {VERSION}")
        arrays = load_file(str(source.with_suffix(".safetensors")))
        ends = np.cumsum(arrays["sizes"])
        if len(held["nodes"]) != ends.size or (ends.size and ends[-1] != arrays["tokens"].size):
            raise ValueError(f"{source}: its nodes and its tokens do not belong together")
        spans = np.split(arrays["tokens"], ends[:-1]) if ends.size else []
        nodes = [
            Node(**node, tokens=span.tolist())
            for node, span in zip(held["nodes"], spans, strict=True)
        ]
        if any(not -1 <= node.parent < i for i, node in enumerate(nodes)):
            raise ValueError(f"{source}: a node's parent does not come before it")
        return cls(list(held["prompts"]), nodes)
