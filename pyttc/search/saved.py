"""Search trees in files: JSON, and the tokens beside it as safetensors. What is read is not trusted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .tree import Node, SearchTree

FORMAT, VERSION = "pyttc search tree", 1
MAX_BYTES = 1 << 29  # of a file that is read
NUMBERS = ("logprob", "score")


def save(tree: SearchTree, path: Path) -> None:
    from safetensors.numpy import save_file

    sizes = np.array([len(node.tokens) for node in tree.nodes], np.int64)
    tokens = np.array([t for node in tree.nodes for t in node.tokens], np.int32)
    nodes = [{k: plain(v) for k, v in vars(n).items() if k != "tokens"} for n in tree.nodes]
    held = {"format": FORMAT, "version": VERSION, "about": tree.about, "prompts": tree.prompts}
    text = json.dumps({**held, "best": tree.best, "nodes": nodes})
    arrays = path.with_suffix(".safetensors")
    partial = [p.with_name(p.name + ".part") for p in (arrays, path)]
    save_file({"tokens": tokens, "sizes": sizes}, str(partial[0]))
    partial[1].write_text(text)
    partial[0].replace(arrays)
    partial[1].replace(path)


def plain(value: Any) -> Any:
    """A value for JSON, which has no infinities and no NaN."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def load(path: Path) -> SearchTree:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    beside = path.with_suffix(".safetensors")
    held = read_json(path)
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise ValueError(f"{path}: not a saved search tree")
    if held.get("version") != VERSION:
        version = str(held.get("version"))[:20]
        raise ValueError(f"{path}: of version {version}, and this pyttc reads version {VERSION}")
    small_enough(beside)
    try:
        arrays = load_file(str(beside))
        tree = SearchTree(held["prompts"], [], held["best"], held["about"])
        expect(all(isinstance(p, str) for p in tree.prompts), "prompts")
        pieces = cut(arrays["tokens"], arrays["sizes"])
        expect(isinstance(held["nodes"], list) and len(pieces) == len(held["nodes"]), "nodes")
        for fields, tokens in zip(held["nodes"], pieces, strict=True):
            tree.nodes.append(node(fields, tokens, len(tree.nodes), len(tree.prompts)))
        count = len(tree.nodes)
        expect(all(type(b) is int and -1 <= b < count for b in tree.best), "best")
        expect(len(tree.best) in (0, len(tree.prompts)), "best")
        texts = [*tree.about.items()]
        expect(all(isinstance(text, str) for pair in texts for text in pair), "about")
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
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


def cut(tokens: npt.NDArray[Any], sizes: npt.NDArray[Any]) -> list[list[int]]:
    """The tokens of each node."""
    expect(tokens.ndim == 1 and tokens.dtype == np.int32, "tokens")
    expect(sizes.ndim == 1 and sizes.dtype == np.int64 and bool((sizes >= 0).all()), "sizes")
    expect(bool((sizes <= tokens.size).all()) and int(sizes.sum()) == tokens.size, "sizes")
    ends = np.cumsum(sizes)
    return [part.tolist() for part in np.split(tokens, ends[:-1])] if ends.size else []


def node(fields: dict[str, Any], tokens: list[int], index: int, prompts: int) -> Node:
    """A node of the file, if it can stand at `index` of a tree."""
    for name in NUMBERS:
        value = fields[name]
        if value in ("inf", "-inf", "nan"):
            fields[name] = float(value)
        else:
            allowed: Any = (int, float) if name == "logprob" else (int, float, type(None))
            expect(isinstance(value, allowed), name)
    made = Node(**fields, tokens=tokens)
    expect(all(type(v) is int for v in (made.parent, made.prompt, made.path)), "parent")
    expect(-1 <= made.parent < index and 0 <= made.prompt < prompts, "parent")
    expect(isinstance(made.text, str) and isinstance(made.end, str), "text")
    expect(made.verified in (None, True, False), "verified")
    return made


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)
