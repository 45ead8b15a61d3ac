"""The trees that makers of tree attention measure theirs with: how many nodes each level has, and how many
tokens each of a level's nodes. A level's nodes are shared out evenly among those above."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import pyttc

PAGE_SIZE = 16


class Tree(NamedTuple):
    widths: tuple[int, ...]
    lengths: tuple[int, ...]


class Suite(NamedTuple):
    heads: tuple[tuple[int, int], ...]  # of queries, of keys
    trees: tuple[Tree, ...]


def tree(widths: str, lengths: str) -> Tree:
    return Tree(*(tuple(int(n) for n in part.split(",")) for part in (widths, lengths)))


SUITES = {
    # MLSys 2025: kernel_bench/run_benchmark.sh of its artifact.
    "FastTree": Suite(
        ((16, 1), (32, 8), (32, 32)),
        (
            tree("1,2,64", "8,256,32"),
            tree("1,4,256", "8,256,32"),
            tree("1,4,8,256", "8,256,256,32"),
            tree("1,256", "256,32"),
            tree("1,1024", "2048,32"),
            tree("1,16,64", "1024,256,32"),
            tree("1,4,16,512", "1024,256,128,32"),
            tree("1,4,16,64,256,1024", "256,8,256,64,32,256"),
            tree("1,10", "4000,400"),
            tree("1,2,4,8,16,32,64,128,1024", "16,16,16,16,16,16,16,16,16"),
            tree("1,2,4,8,16,32,64,128,1024", "256,128,64,16,16,16,16,16,16"),
            tree("1,8,16,32,64,128,1024", "256,128,64,16,16,16,16"),
            tree("1,8,16,32,64,256,1024", "256,128,64,16,16,16,16"),
            tree("1,16,32,64,128,1024", "256,128,64,16,16,16"),
            tree("1,16,32,64,256,1024", "256,128,64,16,16,16"),
        ),
    ),
    # ASPLOS 2026: benchmark/run_kernel_bench.sh.
    "PAT": Suite(
        ((32, 32), (16, 8), (32, 8), (64, 8)),
        (
            tree("1,10", "4096,416"),
            tree("1,256", "256,32"),
            tree("1,1024", "2048,32"),
            tree("1,2,64", "1024,256,256"),
            tree("1,4,256", "32,256,32"),
            tree("1,8,512", "32,512,256"),
            tree("1,8,512", "32,2048,256"),
            tree("1,8,512", "512,512,256"),
            tree("1,4,8,256", "32,256,256,32"),
            tree("1,4,16,512", "1024,256,128,32"),
            tree("1,4,16,64,256,1024", "256,32,256,64,32,256"),
            tree("1,16,32,64,128,1024", "256,128,64,32,32,32"),
            tree("1,16,32,64,256,1024", "256,128,64,32,32,32"),
            tree("1,8,16,32,64,128,1024", "256,128,64,32,32,32,32"),
            tree("1,8,16,32,64,256,1024", "256,128,64,32,32,32,32"),
            tree("2,8,16,256", "256,256,32,32"),
            tree("4,16,256,512", "512,32,128,32"),
            tree("8,16,32,256", "512,512,256,32"),
            tree("256", "1024"),
            tree("256", "4096"),
        ),
    ),
}


class Forest:
    """A tree over pages in random order, with room in each leaf for a token more.

    Attributes:
        chains: [paths, levels], the nodes from the root to each path's leaf.
        pages: of each node.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.parents: list[int] = []
        self.tokens: list[int] = []
        above, chains = [-1], torch.empty(1, 0, dtype=torch.int64)
        for width, length in zip(tree.widths, tree.lengths, strict=True):
            first = len(self.parents)
            over = [i * len(above) // width for i in range(width)]
            self.parents += [above[i] for i in over]
            self.tokens += [length] * width
            above = list(range(first, first + width))
            chains = torch.cat([chains[over], torch.tensor(above)[:, None]], 1)
        self.leaves, self.chains = above, chains
        counts = [n // PAGE_SIZE + 1 for n in self.tokens]
        self.pages = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0))
        self.pages = list(self.pages.split(counts))

    @property
    def pool_pages(self) -> int:
        return sum(len(pages) for pages in self.pages)

    def prefix_tree(self, device: Any, more: int = 0) -> pyttc.PrefixTree:
        """With `more` tokens in every leaf."""
        lengths = list(self.tokens)
        for leaf in self.leaves:
            lengths[leaf] += more
        return pyttc.PrefixTree(
            self.parents, self.pages, lengths, self.leaves, PAGE_SIZE, device=device
        )

    def unshared(self, device: Any) -> pyttc.PrefixTree:
        """The same paths in the same pages, each with nodes of its own."""
        paths, levels = self.chains.shape
        nodes = self.chains.flatten().tolist()
        parents = torch.arange(paths * levels).reshape(paths, levels) - 1
        parents[:, 0] = -1
        pages, lengths = [self.pages[i] for i in nodes], [self.tokens[i] for i in nodes]
        leaves = torch.arange(1, paths + 1) * levels - 1
        return pyttc.PrefixTree(parents.flatten(), pages, lengths, leaves, PAGE_SIZE, device=device)

    def slots(self) -> torch.Tensor:
        """[paths, tokens of one]: where in the pool each lies."""
        of_node = [
            (pages[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).flatten()[:n]
            for pages, n in zip(self.pages, self.tokens, strict=True)
        ]
        return torch.stack([torch.cat([of_node[i] for i in chain]) for chain in self.chains])
