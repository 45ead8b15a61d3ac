"""`pyttc solve`: puzzles, or any prompt, answered by search."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..tasks.countdown import Problem, can_reach, parse_number, random_rollouts, test_set
from ..tasks.countdown_text import MAX_NUMBERS, example_lines, prompt
from .common import (
    BadInput,
    add_budget,
    add_model,
    budget,
    journaling,
    load_engine,
    model_folder,
    number,
    unescaped,
    writing,
)

MAX_SOLVED_EXACTLY = 6  # numbers; for more the exact solver takes too long
ROLLOUTS = 1024
EXAMPLES = """examples:
  pyttc solve                                        test puzzles, with the largest model that comes along
  pyttc solve 23,45,67,12 57 --strategy beam --seconds 20
  pyttc solve --model DIR --prompt "2 + 2 =" --until "\\n" --n 16
                                                     any checkpoint, up to the end of the line
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "solve",
        help="solve Countdown puzzles, or continue any prompt, by search",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("numbers", nargs="?", help="the puzzle's numbers: 23,45,67,12")
    parser.add_argument("target", nargs="?", help="what to make of all of them with + - * /")
    add_model(parser, "a checkpoint's folder, or the name of a model that comes with pyttc")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="continue this instead")
    parser.add_argument("--strategy", help="sample-n (for a prompt best-of-n), beam, dvts, ...")
    parser.add_argument("--n", type=number(1), default=64, help="paths a puzzle (64)")
    parser.add_argument("--puzzles", type=number(1), default=20, help="how many test puzzles (20)")
    parser.add_argument(
        "--size", type=int, choices=(3, 4, 5), default=4, help="of how many numbers (4)"
    )
    parser.add_argument("--examples", type=number(0), default=0, help="solved examples before each")
    parser.add_argument("--temperature", type=number(0, float), default=1.0)
    parser.add_argument("--max-tokens", type=number(1), help="of a path")
    parser.add_argument(
        "--until",
        action="append",
        type=unescaped,
        metavar="TEXT",
        help=r"ends a path, as the model's own end does: '\n'; may be given several times",
    )
    parser.add_argument(
        "--delimiter",
        type=unescaped,
        help="text that ends a step, for strategies that search by steps",
    )
    parser.add_argument("--seed", type=number(0), default=0)
    parser.add_argument(
        "--save", type=Path, metavar="RUN.json", help="keep every path, for pyttc show"
    )
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="keep what is done; the same command goes on from it",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_budget(parser)


@dataclass(frozen=True)
class Job:
    """What is to be searched: prompts, what the table calls them, and the options of `stream`."""

    prompts: list[str]
    names: list[str]
    options: dict[str, Any]
    strategy: Any
    about: dict[str, str]
    problems: list[Problem]  # none for prompts of any other kind


def run(args: argparse.Namespace) -> int:
    puzzles = problems(args)  # what is wrong with the input is said before a model is loaded
    limits = budget(args)
    if args.save and (args.save.suffix != ".json" or not args.save.parent.is_dir()):
        raise BadInput(f"--save: {str(args.save)!r} is no name.json in a folder that exists")
    if args.journal and not args.journal.parent.is_dir():
        raise BadInput(f"--journal: {str(args.journal)!r} is in no folder that exists")
    folder = model_folder(args.model)
    work = job(args, puzzles, folder)
    engine = load_engine(folder, args.device)
    check_prompts(engine, work.prompts)
    from ..search import stream

    found: list[Any] = []
    interrupted = False
    try:
        with progress(work) as on_step, journaling(args.journal):
            options = {**work.options, "on_step": on_step, "journal": args.journal}
            events = stream(engine, work.prompts, work.strategy, limits, **options)
            for latest in events:
                found = latest
    except KeyboardInterrupt:
        interrupted = True
    if not found:
        raise KeyboardInterrupt
    tree = found[0].tree
    tree.about = {**work.about, "stopped": found[0].stopped or "", "tokens": str(found[0].tokens)}
    if args.save:
        with writing(args.save):
            tree.save(args.save)
    report = summary(work, found)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        from .table import show

        show(report, sys.stdout)
    return 130 if interrupted else 0


def problems(args: argparse.Namespace) -> list[Problem]:
    """The puzzles asked for; none where --prompt is."""
    if args.prompt:
        if args.numbers:
            raise BadInput("--prompt: give a prompt or a puzzle, not both")
        return []
    if args.numbers is None:
        return test_set(args.size, args.puzzles)
    numbers = [parse_number(part.strip()) for part in args.numbers[:1000].split(",")]
    if None in numbers or not 2 <= len(numbers) <= MAX_NUMBERS:
        raise BadInput(
            f"numbers: got {args.numbers[:80]!r}, expected 2 to {MAX_NUMBERS}, as 23,45,67,12"
        )
    target = parse_number(args.target or "")
    if target is None:
        raise BadInput(
            f"target: got {args.target!r:.80}, expected a whole number, as in 23,45,67,12 57"
        )
    return [Problem(tuple(n for n in numbers if n is not None), target)]


def job(args: argparse.Namespace, puzzles: list[Problem], folder: Path) -> Job:
    from ..search.names import Means, named
    from ..tasks import countdown_search as countdown

    name = args.strategy or ("sample-n" if puzzles else "best-of-n")
    options: dict[str, Any] = {"seed": args.seed, "temperature": args.temperature}
    try:
        head = countdown.reward_head(folder)
        if puzzles:
            means = Means(head, countdown.claimed_number, countdown.again, wait=None)
            options |= countdown.options(attempts=name == "revision")
            lines = example_lines(args.examples, seed=args.seed)
            prompts, names = [prompt(p, lines) for p in puzzles], [str(p) for p in puzzles]
        else:
            means = Means(head, wait="Wait", again=lambda prompt, text: "\n" + prompt)
            prompts = names = args.prompt
        if name == "self-certainty":
            options["confidence"] = 16
        strategy = named(name, args.n, means)
    except ValueError as error:
        raise BadInput(f"--strategy: {error}") from None
    options |= {"max_new_tokens": args.max_tokens} if args.max_tokens else {}
    options |= {"delimiter": args.delimiter} if args.delimiter else {}
    options |= {"until": args.until} if args.until else {}
    if not puzzles and not args.max_tokens:
        options["max_new_tokens"] = 256
    about = {"model": folder.name, "strategy": name, "n": str(args.n), "seed": str(args.seed)}
    return Job(prompts, names, options, strategy, about, puzzles)


def check_prompts(engine: Any, prompts: list[str]) -> None:
    if engine.tokenizer is None:
        raise BadInput("--model: has no tokenizer, which text needs")
    for text in prompts:
        try:
            size = engine.encode(text).size
        except Exception as error:  # tokenizers know no narrower one
            raise BadInput(f"prompt: the tokenizer cannot read {text[:40]!r}: {error}") from None
        if not 1 <= size < engine.max_length:
            raise BadInput(f"prompt: got {size} tokens, expected 1 to {engine.max_length - 1}")


@contextlib.contextmanager
def progress(work: Job) -> Iterator[Any]:
    """A line on a terminal that says how far the search is: yields what to call after every token."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        total = len(work.prompts)
        task = bar.add_task("reading the prompts", total=total)

        def on_step(run: Any) -> None:
            solved = int(run.solved.sum())
            said = f"{solved} of {total} solved, " if run.verify else ""
            tokens = run.cost.ran.decoded
            bar.update(task, completed=solved, description=f"{said}{tokens:,} tokens sampled")

        yield on_step


def summary(work: Job, found: list[Any]) -> dict[str, Any]:
    """What is printed, as JSON."""
    from ..search.saved import plain as finite
    from ..tasks.countdown_search import steps_shown

    first, tree = found[0], found[0].tree
    tokens, leaves = [0] * len(found), [0] * len(found)
    for node, below in zip(tree.nodes, tree.children(), strict=False):
        tokens[node.prompt] += len(node.tokens)
        leaves[node.prompt] += not below
    rows = []
    for i, (name, result) in enumerate(zip(work.names, found, strict=True)):
        answer = result.answer
        if answer is not None:
            answer = steps_shown(answer) if work.problems else answer
        row = {"puzzle": name, "answer": answer, "finished": result.finished}
        row |= {"verified": result.verified, "paths": leaves[i]}
        seconds = result.solved_after or result.seconds
        row |= {"tokens": tokens[i], "seconds": round(seconds, 3)}
        if result.best >= 0:
            row["score"] = finite(tree.nodes[result.best].score)
        if work.problems:
            row |= {"solvable": solvable(work.problems[i]), "text": result.answer}
        rows.append(row)
    report: dict[str, Any] = {**work.about, "n": int(work.about["n"]), "rows": rows}
    report |= {"tokens": first.tokens, "seconds": round(first.seconds, 3), "flops": first.flops}
    report |= {"dollars": first.dollars, "stopped": first.stopped}
    if work.problems:
        report["solved"] = sum(bool(result.verified) for result in found)
        report["random"] = round(sum(chance(p, report["n"]) for p in work.problems), 2)
    return report


def solvable(problem: Problem) -> bool | None:
    """What the exact solver says, None where it would take too long."""
    if len(problem.numbers) > MAX_SOLVED_EXACTLY:
        return None
    return can_reach(problem.numbers, problem.target)


def chance(problem: Problem, tries: int) -> float:
    """The chance that one of `tries` random rollouts solves the problem, estimated from ROLLOUTS."""
    hits = sum(islice(random_rollouts(problem, seed=0), ROLLOUTS))
    return 1 - float(1 - hits / ROLLOUTS) ** tries
