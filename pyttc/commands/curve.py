"""`pyttc curve`: accuracy against tokens, FLOPs, seconds and dollars, as JSON and as a plot."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..tasks import model_names
from ..tasks.countdown import Problem, random_rollouts, test_set
from ..tasks.countdown_text import example_lines, prompt
from .common import BadInput, journaling, load_engine, model_folder, number, writing
from .info import cpu_model

if TYPE_CHECKING:
    from ..search.journal import Journal

FORMAT, VERSION = "pyttc curve", 1
ROLLOUTS = 2048
DEFAULT = "sample-n,best-of-n,beam,rebase"


def add(commands: Any) -> None:
    parser = commands.add_parser("curve", help="accuracy against compute, for several strategies")
    parser.add_argument(
        "--model", action="append", metavar="DIR", help="one or more (all that come along)"
    )
    parser.add_argument("--device", help="cpu or cuda; a GPU where there is one")
    parser.add_argument("--strategies", default=DEFAULT, help=f"by name, with commas ({DEFAULT})")
    parser.add_argument(
        "--sizes", default="1,4,16,64", help="numbers of paths a puzzle (1,4,16,64)"
    )
    parser.add_argument("--problems", type=number(1), default=100, help="test puzzles (100)")
    parser.add_argument(
        "--size", type=int, choices=(3, 4, 5), default=4, help="of how many numbers (4)"
    )
    parser.add_argument("--examples", type=number(0), default=0, help="solved examples before each")
    parser.add_argument("--reward", choices=("exact", "monte_carlo"), default="exact")
    parser.add_argument("--seconds", type=number(0, float), help="stop after so much time")
    parser.add_argument("--dollars-per-hour", type=number(0, float), help="the machine's price")
    parser.add_argument("--seed", type=number(0), default=0)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("curve.json"),
        help="plot and journal go beside it; from the journal the same command goes on (curve.json)",
    )


def run(args: argparse.Namespace) -> int:
    from ..search.journal import Journal
    from ..search.names import NAMES

    sizes = whole_numbers(args.sizes)
    strategies = [name.strip() for name in args.strategies.split(",")]
    for name in strategies:
        if name not in NAMES:
            raise BadInput(f"--strategies: got {name!r:.40}, expected some of {', '.join(NAMES)}")
    folders = [model_folder(name) for name in args.model or model_names() or [None]]
    folders.sort(key=lambda folder: -weight_bytes(folder))
    problems = test_set(args.size, args.problems)
    settings = settled(args, folders)
    check_out(args.out)
    path = args.out.with_suffix(".journal")
    deadline = time.perf_counter() + (math.inf if args.seconds is None else args.seconds)
    with journaling(path), Journal(path, settings) as journal:
        curve = opened(settings, journal, problems, sizes)
        try:
            for folder in folders:
                add_model(curve, args, journal, folder, problems, strategies, sizes, deadline)
        except KeyboardInterrupt:
            print("interrupted; what was finished is kept")
            return 130
        finally:
            drawn(curve, args.out)
    return 0


def add_model(
    curve: dict[str, Any],
    args: argparse.Namespace,
    journal: Journal,
    folder: Path,
    problems: Sequence[Problem],
    strategies: Sequence[str],
    sizes: list[int],
    deadline: float,
) -> None:
    """Measures what the curve lacks of one model; writes journal and file after each point."""
    from ..search import curve as measure
    from ..search.journal import JournalError
    from ..search.names import Means, named
    from ..tasks import countdown_search as countdown

    have = {(p["strategy"], p["n"]) for p in curve["points"] if p["model"] == folder.name}
    missing = [s for s in strategies if any((s, n) not in have for n in sizes)]
    greedy = [] if ("greedy", 1) in have else ["greedy"]
    if not missing and not greedy:
        return
    engine = load_engine(folder, args.device)
    head = countdown.reward_head(folder, args.reward)
    means = Means(head, countdown.claimed_number, countdown.again)
    prompts = [prompt(p, example_lines(args.examples, seed=args.seed)) for p in problems]
    for name in [*greedy, *missing]:
        options = countdown.options(attempts=name == "revision")
        options |= {"confidence": 16} if name == "self-certainty" else {}
        left = deadline - time.perf_counter()
        if left <= 0:
            print("time is up; what was finished is kept")
            return
        try:
            points = measure(
                engine,
                prompts,
                {name: partial(named, name, means=means)},
                sizes=[1] if name == "greedy" else sizes,
                seconds=None if math.isinf(left) else left,
                dollars_per_hour=args.dollars_per_hour,
                seed=args.seed,
                journal=journal,
                **options,
            )
            done = 0
            for point in points:
                done += 1
                if (name, point.n) in have:
                    continue
                found = {"model": folder.name, **asdict(point)}
                journal.append({"point": found})
                curve["points"].append(found)
                keep(curve, args.out)
                print(line(curve["points"][-1]), flush=True)
            if done < (1 if name == "greedy" else len(sizes)):
                print("time is up; what was finished is kept")
                return
        except JournalError:
            raise
        except ValueError as error:
            raise BadInput(str(error)) from None


def line(point: dict[str, Any]) -> str:
    solved, chosen = (100 * point[key][0] for key in ("solved", "chosen"))
    return (
        f"{point['model']:20} {point['strategy']:16} n={point['n']:<4} verified {solved:5.1f} %  "
        f"chosen {chosen:5.1f} %  {point['tokens']:9,.0f} tokens  {point['seconds']:8.3f} s a puzzle"
    )


def settled(args: argparse.Namespace, folders: list[Path]) -> dict[str, Any]:
    """What a curve's points have in common, without which they are not one curve."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    named = torch.cuda.get_device_name() if device.startswith("cuda") else cpu_model()
    return {
        "problems": args.problems,
        "numbers": args.size,
        "examples": args.examples,
        "seed": args.seed,
        "reward": args.reward,
        "dollars_per_hour": args.dollars_per_hour,
        "models": {folder.name: weights(folder) for folder in folders},
        "machine": {"device": named, "torch": torch.__version__, "pyttc": __version__},
    }


def check_out(out: Path) -> None:
    if out.suffix != ".json" or not out.parent.is_dir():
        raise BadInput(f"--out: {str(out)!r} is no name.json in a folder that exists")
    if out.exists() and not out.with_suffix(".journal").exists():
        raise BadInput(f"--out: {out} is there without its journal; name another file")


def opened(
    settings: dict[str, Any], journal: Journal, problems: list[Problem], sizes: list[int]
) -> dict[str, Any]:
    """The curve as far as the journal knows it."""
    points = [record["point"] for record in journal.records() if "point" in record]
    check_points(points, {}, journal.path)
    machine = {**settings["machine"], "threads": torch.get_num_threads()}
    drawn = sorted({*sizes, *(point["n"] for point in points)})
    random = {str(n): interval for n, interval in baseline(problems, drawn).items()}
    curve: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "settings": {key: value for key, value in settings.items() if key != "machine"},
        "machine": {**machine, "python": platform.python_version()},
        "random": random,
        "points": points,
    }
    return curve


def read(path: Path) -> dict[str, Any]:
    """A curve from its file, which need not be trusted.

    Raises:
        BadInput: for anything else.
    """
    from ..search.saved import read_json

    try:
        found = read_json(path)
    except (ValueError, OSError) as error:
        raise BadInput(f"{path}: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BadInput(f"{path}: not a curve that pyttc wrote")
    if found.get("version") != VERSION:
        raise BadInput(f"{path}: of another version than {VERSION}, which this pyttc reads")
    check_points(found.get("points"), found.get("random"), path)
    return found


def check_points(points: Any, random: Any, path: Path) -> None:
    """Raises BadInput for numbers that are none."""
    try:
        for point in points:
            texts = [point["model"], point["strategy"]]
            values = [*point["solved"], *point["chosen"], point["n"], point["tokens"]]
            values += [point["flops"], point["seconds"], point["dollars"] or 0.0]
            fine = all(isinstance(text, str) for text in texts)
            if not fine or not all(math.isfinite(value) and value >= 0 for value in values):
                raise ValueError
        for n, interval in random.items():
            int(n), [math.isfinite(value) for value in interval]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadInput(f"{path}: damaged") from None


def baseline(
    problems: Sequence[Problem], sizes: Sequence[int]
) -> dict[int, tuple[float, float, float]]:
    """pass@n of uniform legal moves, with intervals."""
    from ..search.statistics import bootstrap_interval, pass_at_k

    hits = [sum(islice(random_rollouts(problem, seed=0), ROLLOUTS)) for problem in problems]
    total = [ROLLOUTS] * len(hits)
    return {n: bootstrap_interval(pass_at_k(hits, total, n)) for n in sizes if n <= ROLLOUTS}


def keep(curve: dict[str, Any], path: Path) -> None:
    from ..search.journal import write_whole

    with writing(path):
        write_whole(path, json.dumps(curve, indent=1) + "\n")


def drawn(curve: dict[str, Any], path: Path) -> None:
    """Writes the curve, and the plot beside it where matplotlib is there, if something was measured."""
    if not curve["points"]:
        return
    keep(curve, path)
    try:
        from .plot import plot
    except ImportError:
        print(f"{path}; no plot, which needs matplotlib: pip install 'pyttc[bench]'")
        return
    target = path.with_suffix(".svg")
    with writing(target):
        partial_file = target.with_name(f".{target.name}")
        plot(curve, partial_file)
        partial_file.replace(target)
    print(f"{path}, {target}")


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def weights(folder: Path) -> str:
    """A digest of the files of weights."""
    found = hashlib.blake2b(digest_size=8)
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as opened:
            while chunk := opened.read(1 << 24):
                found.update(chunk)
    return found.hexdigest()


def whole_numbers(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or sizes != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] <= ROLLOUTS:
        raise BadInput(f"--sizes: got {text!r:.40}, expected rising whole numbers, as 1,4,16,64")
    return sizes
