"""`pyttc show`: the tree of a saved run, on the terminal and as a page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .common import BadInput, number, plain, writing

STYLES = {"dropped": "dim", "tool": "dim", "room": "dim"}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "show", help="print the tree of a saved run, and write it as a page"
    )
    parser.add_argument("run", type=Path, help="RUN.json, as pyttc solve --save writes it")
    parser.add_argument("--html", type=Path, help="where the page goes (RUN.html)")
    parser.add_argument("--prompt", type=number(1), metavar="K", help="print the K-th prompt only")
    parser.add_argument("--steps", type=number(0), default=30, help="steps printed a prompt (30)")


def run(args: argparse.Namespace) -> int:
    from ..search.html import page
    from ..search.journal import write_whole
    from ..search.tree import SearchTree

    try:
        tree = SearchTree.load(args.run)
    except OSError as error:
        name = error.filename or args.run
        raise BadInput(f"{name}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise BadInput(str(error)) from None
    if args.prompt and args.prompt > len(tree.prompts):
        raise BadInput(f"--prompt: got {args.prompt}, and the run has {len(tree.prompts)}")
    show(tree, args.steps, args.prompt)
    target = args.html or args.run.with_suffix(".html")
    with writing(target):
        write_whole(target, page(tree))
    print(f"page: {target}")
    return 0


def show(tree: Any, steps: int, only: int | None) -> None:
    """Prints the tree of each prompt, the way to its answer first, `steps` of its steps."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    from ..search.html import answer_lines, remarks, tail

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    below, answers = tree.children(), answer_lines(tree)

    def order(index: int) -> tuple[bool, float]:
        score = tree.nodes[index].score
        return index not in answers, -(score if score is not None else tree.nodes[index].logprob)

    for prompt, text in enumerate(tree.prompts):
        if only not in (None, prompt + 1):
            continue
        found = tree.best[prompt] if tree.best else -1
        solved = found >= 0 and tree.nodes[found].verified
        top = Tree(Text(plain(tail(text)), style="bold green" if solved else "bold"))
        firsts = [i for i in below[-1] if tree.nodes[i].prompt == prompt]
        waiting = [(top, i) for i in sorted(firsts, key=order, reverse=True)]
        for _ in range(steps):
            if not waiting:
                break
            parent, index = waiting.pop()
            node = tree.nodes[index]
            style = "green" if node.verified else STYLES.get(node.end, "")
            label = Text(plain(node.text), style=style)
            label.append(f"  {plain(remarks(tree, index))}", style="dim")
            if index == found:
                label.append("  <- answer", style="bold")
            branch = parent.add(label)
            waiting += [(branch, i) for i in sorted(below[index], key=order, reverse=True)]
        if waiting:
            count = sum(node.prompt == prompt for node in tree.nodes) - steps
            top.add(Text(f"... {count:,} more steps, see the page", style="dim"))
        console.print(top)
