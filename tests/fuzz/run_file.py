"""Run files of any bytes, as `pyttc show` reads them: a tree that can be shown, or a ValueError."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pyttc.search.html import page
from pyttc.search.tree import Node, SearchTree
from tests.fuzz import Reader, patched

SEEDS = (
    b"",
    b"\x01\x00\x01",
    b"\x05" + bytes(range(120)),
    b"\x00" + b'{"format": "pyttc search tree"}',
)
FILE = Path(tempfile.mkdtemp()) / "run.json"


def whole() -> bytes:
    tree = SearchTree(["1,2>3:"], [], [1], {"model": "m"})
    common = {"prompt": 0, "path": 0, "logprob": -0.5, "verified": None}
    tree.nodes.append(Node(parent=-1, text="1+2=", tokens=[3, 4], score=None, end="tool", **common))
    tree.nodes.append(Node(parent=0, text="3;", tokens=[5], score=0.25, end="eos", **common))
    tree.save(FILE)
    return FILE.read_bytes()


WHOLE = whole()


def target(data: bytes) -> None:
    reader = Reader(data)
    FILE.write_bytes(patched(WHOLE, reader) if reader.below(8) else reader.left())
    try:
        tree = SearchTree.load(FILE)
    except ValueError:
        return
    assert all(-1 <= node.parent < i for i, node in enumerate(tree.nodes))
    page(tree)
