"""A search tree as one HTML page that needs nothing else: no script, no font, nothing from a network.

What models wrote is not trusted: all text is escaped, and the page forbids itself to run anything.
"""

from __future__ import annotations

import html
from collections.abc import Iterator

from .tree import SearchTree

MAX_NODES = 20_000  # that one page shows
MAX_TEXT = 500  # characters of a step
STYLE = """
body { font: 14px/1.5 ui-monospace, monospace; margin: 2em; color: #222; background: #fff }
details { margin-left: 1.2em; border-left: 1px solid #ddd; padding-left: .4em }
body > details { margin: .6em 0; border: 0; padding: 0 }
summary { cursor: default; white-space: pre-wrap; overflow-wrap: anywhere }
details:not(.leaf) > summary { cursor: pointer }
.leaf > summary { list-style: none }
.best > summary { background: #fff3bf }
.good > summary b, .good > summary i { color: #2b8a3e }
.lost > summary { color: #999 }
i { color: #868e96; font-style: normal; font-size: 12px; margin-left: 1em }
b { font-weight: 600 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1a1a1a }
  details { border-color: #444 } .best > summary { background: #4d3f00 } .lost > summary { color: #777 } }
"""
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head><body>
"""


def page(tree: SearchTree) -> str:
    """The page: each prompt, the steps below it as a tree that folds, scores and ends beside them."""
    about = ", ".join(f"{name} {value}" for name, value in tree.about.items() if value)
    title = html.escape(f"pyttc: {about}" if about else "pyttc")
    return "".join([HEAD.format(title=title, style=STYLE), f"<h1>{title}</h1>\n", *body(tree)])


def body(tree: SearchTree) -> Iterator[str]:
    below, answers = tree.children(), answer_lines(tree)
    firsts: list[list[int]] = [[] for _ in tree.prompts]
    for index in below[-1]:
        firsts[tree.nodes[index].prompt].append(index)
    left = MAX_NODES
    for prompt, text in enumerate(tree.prompts):
        found = tree.best[prompt] if tree.best else -1
        solved = found >= 0 and bool(tree.nodes[found].verified)
        kind = ' class="good"' if solved else ""
        answer = f"<i>{escaped(tree.text(found))}</i>" if found >= 0 else ""
        yield f"<details{kind}><summary><b>{escaped(tail(text))}</b>{answer}</summary>\n"
        stack = firsts[prompt][::-1]
        while stack and left > 0:
            index = stack.pop()
            if index < 0:
                yield "</details>\n"
                continue
            left -= 1
            yield opened(tree, index, index in answers, bool(below[index]))
            stack.append(-1)
            stack += below[index][::-1]
        yield "</details>\n" * stack.count(-1)
        if any(index >= 0 for index in stack):
            yield f"<p>Only the first {MAX_NODES:,} steps are shown.</p>\n"
        yield "</details>\n"
        if left <= 0:
            break
    yield "</body></html>\n"


def answer_lines(tree: SearchTree) -> set[int]:
    """The nodes on the way to an answer."""
    on = set()
    for index in tree.best:
        while index >= 0 and index not in on:
            on.add(index)
            index = tree.nodes[index].parent
    return on


def opened(tree: SearchTree, index: int, best: bool, inner: bool) -> str:
    node = tree.nodes[index]
    kinds = ["" if inner else "leaf", "best" if best else ""]
    kinds += ["good" if node.verified else "lost" if node.end in ("dropped", "tool") else ""]
    return (
        f'<details open class="{" ".join(kind for kind in kinds if kind)}"><summary>'
        f"<b>{escaped(node.text)}</b><i>{escaped(remarks(tree, index))}</i></summary>\n"
    )


def remarks(tree: SearchTree, index: int) -> str:
    """What is said beside a step: its score or log-probability, why it ended, the verifier's word."""
    node = tree.nodes[index]
    said = [f"log p {node.logprob:.2f}" if node.score is None else f"score {node.score:.3f}"]
    said += [node.end] if node.end else []
    said += ["verified"] if node.verified else []
    return ", ".join(said)


def tail(text: str) -> str:
    """The end of a long prompt: what stands before it is examples."""
    return text if len(text) <= MAX_TEXT else f"...{text[-MAX_TEXT:]}"


def escaped(text: str) -> str:
    cut = text[:MAX_TEXT] + ("..." if len(text) > MAX_TEXT else "")
    return html.escape(cut.replace("\n", "\u23ce"))
