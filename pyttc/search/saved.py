"""Search trees in files: one of JSON each, so that it is there whole or not. What is read is not trusted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .journal import write_whole
from .tree import Node, SearchTree

FORMAT, VERSION = "pyttc search tree", 2
MAX_BYTES = 1 << 29  # of a file that is read
NUMBERS = ("logprob", "score")


def save(tree: SearchTree, path: Path) -> None:
    nodes = [{name: plain(value) for name, value in vars(node).items()} for node in tree.nodes]
    held = {"format": FORMAT, "version": VERSION, "about": tree.about, "prompts": tree.prompts}
    write_whole(path, json.dumps({**held, "best": tree.best, "nodes": nodes}))


def plain(value: Any) -> Any:
    """A value for JSON, which has no infinities and no NaN."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def load(path: Path) -> SearchTree:
    held = read_json(path)
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise ValueError(f"{path}: not a saved search tree")
    if held.get("version") != VERSION:
        version = str(held.get("version"))[:20]
        raise ValueError(f"{path}: of version {version}, and this pyttc reads version {VERSION}")
    try:
        tree = SearchTree(held["prompts"], [], held["best"], held["about"])
        expect(all(isinstance(p, str) for p in tree.prompts), "prompts")
        expect(isinstance(held["nodes"], list), "nodes")
        for fields in held["nodes"]:
            tree.nodes.append(node(fields, len(tree.nodes), len(tree.prompts)))
        count = len(tree.nodes)
        expect(all(type(b) is int and -1 <= b < count for b in tree.best), "best")
        expect(len(tree.best) in (0, len(tree.prompts)), "best")
        texts = [*tree.about.items()]
        expect(all(isinstance(text, str) for pair in texts for text in pair), "about")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged, or no search tree ({error!r:.80})") from None
    return tree


def read_json(path: Path) -> Any:
    """Raises ValueError for what is too large or is not JSON."""
    small_enough(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error!r:.80})") from None


def small_enough(path: Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES >> 20} MiB")


def node(fields: dict[str, Any], index: int, prompts: int) -> Node:
    """A node of the file, if it can stand at `index` of a tree."""
    for name in NUMBERS:
        value = fields[name]
        if value in ("inf", "-inf", "nan"):
            fields[name] = float(value)
        else:
            allowed: Any = (int, float) if name == "logprob" else (int, float, type(None))
            expect(isinstance(value, allowed), name)
    made = Node(**fields)
    expect(isinstance(made.tokens, list) and all(type(t) is int for t in made.tokens), "tokens")
    expect(all(0 <= token < 1 << 31 for token in made.tokens), "tokens")
    expect(all(type(v) is int for v in (made.parent, made.prompt, made.path)), "parent")
    expect(-1 <= made.parent < index and 0 <= made.prompt < prompts, "parent")
    expect(isinstance(made.text, str) and isinstance(made.end, str), "text")
    expect(made.verified in (None, True, False), "verified")
    return made


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)
