"""Kills `pyttc solve` and `pyttc curve` with SIGKILL at random points, resumes them, and compares bits.

    python -m tests.trust.kills [--points 100] [--plant]

A point is a run that was killed, at a random moment or with a record half written, was started again
(one in three is killed a second time) and ended. What it leaves,
every token, log-probability, score, answer and cost, must equal what a run leaves that nobody killed.
`--plant` draws other tokens after each resumption, and then fails. The counts are left in docs/trust.
Every run is a process of its own, forked from one that holds the model, so that it starts at once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyttc import cli
from pyttc.commands import curve as curve_command
from pyttc.commands import solve as solve_command
from pyttc.engine import Engine, Paths
from pyttc.search import events, journal
from pyttc.tasks import model_names, model_path
from tests.resumed import untimed
from tests.trust.evidence import write_evidence

MODEL = "countdown-300k"
SOLVE = (
    "sample-n",
    "best-of-n",
    "beam",
    "lookahead",
    "rebase",
    "particle-filter",
    "asc",
    "revision",
)


def commands(folder: Path) -> dict[str, list[str]]:
    """The command lines that are killed, by name; each leaves its files in a folder."""
    model = ["--model", MODEL, "--seed", "5"]
    found = {
        name: ["solve", *model, "--strategy", name, "--puzzles", "4", "--n", "8", "--json"]
        + ["--journal", str(folder / "run.journal"), "--save", str(folder / "run.json")]
        for name in SOLVE
    }
    curve = [
        "curve",
        *model,
        "--problems",
        "4",
        "--sizes",
        "1,4,8",
        "--out",
        str(folder / "curve.json"),
    ]
    return {**found, "curve": [*curve, "--strategies", "sample-n,beam,rebase"]}


@dataclass(frozen=True)
class Kill:
    """When a run dies: `after` so many seconds, in the middle of its `write`-th write to the journal, or
    as its `event`-th event is about to happen; 0 for not at all."""

    after: float = 0.0
    write: int = 0
    event: int = 0


def child(engine: Any, arguments: list[str], folder: Path, kill: Kill, planted: bool) -> None:
    """One run, in a process of its own."""
    events.SECONDS = 0.02
    solve_command.load_engine = curve_command.load_engine = lambda *_: engine  # type: ignore[assignment]
    os.dup2(os.open(folder / "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    sys.stdout = open(1, "w", closefd=False)
    before_call(events.Events, "recall", kill.event, lambda *given: None)
    before_call(journal.Journal, "_write", kill.write, half)
    if planted:
        real = Paths.sample_identity
        Paths.sample_identity = lambda *given: (real(*given)[0], real(*given)[1] + 1)  # type: ignore[method-assign]
    code = cli.main(arguments)
    sys.stdout.flush()
    os._exit(code)


def before_call(kind: type, name: str, number: int, last: Callable[..., None]) -> None:
    """Kills the process as a method is called for the number-th time, after it has done `last`."""
    real, left = getattr(kind, name), [number]

    def counted(*given: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            last(*given)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given)

    setattr(kind, name, counted)


def half(held: journal.Journal, text: bytes) -> None:
    """Part of what a write is to write."""
    os.write(held._file.fileno(), text[: random.randrange(1, len(text))])


def run(engine: Any, arguments: list[str], folder: Path, kill: Kill, planted: bool = False) -> bool:
    """Runs a command; whether it was killed before it ended."""
    sys.stdout.flush()
    process = os.fork()
    if not process:
        try:
            child(engine, arguments, folder, kill, planted)
        finally:
            os._exit(99)
    if kill.after:
        time.sleep(kill.after)
        os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and os.WEXITSTATUS(status):
        raise SystemExit(f"{arguments} ended with {os.WEXITSTATUS(status)}, {folder}")
    return killed


def left(folder: Path) -> Any:
    """What a run that ended has left, but for times."""
    kept = folder / "curve.json"
    if kept.exists():
        return untimed(json.loads(kept.read_text()))
    report = json.loads((folder / "out").read_text())
    return [untimed(report), json.loads((folder / "run.json").read_text())]


def torn(folder: Path) -> bool:
    """Whether the journal's last line is cut short."""
    found = next(iter(folder.glob("*.journal")), None)
    return found is not None and found.stat().st_size > 0 and found.read_bytes()[-1:] != b"\n"


class Command:
    """A command line with what it leaves when nobody kills it, how long it takes, and what it writes."""

    def __init__(self, engine: Any, name: str, base: Path) -> None:
        self.engine, self.name, self.base = engine, name, base
        with tempfile.TemporaryDirectory(dir=base) as at:
            folder, begun = Path(at), time.monotonic()
            run(engine, commands(folder)[name], folder, Kill())
            self.seconds, self.expected = time.monotonic() - begun, left(folder)
            lines = next(iter(folder.glob("*.journal"))).read_bytes().splitlines()
        self.writes = len(lines)
        self.events = sum(len(json.loads(line).get("events", ())) for line in lines)

    def kill(self, draw: random.Random) -> Kill:
        """Any moment, any write, or any event, each in a third of all kills."""
        kind = draw.randrange(3)
        if kind == 0:
            return Kill(write=draw.randrange(1, self.writes + 1))
        if kind == 1 and self.events:
            return Kill(event=draw.randrange(1, self.events + 1))
        return Kill(after=draw.uniform(0.01, self.seconds))

    def point(self, draw: random.Random, counts: Counter[str], planted: bool) -> bool | None:
        """Whether a run that is killed ends as it should; None where it ended before."""
        with tempfile.TemporaryDirectory(dir=self.base) as at:
            folder = Path(at)
            arguments = commands(folder)[self.name]
            for again in (False, True):
                if not run(self.engine, arguments, folder, self.kill(draw), planted and again):
                    if not again:
                        return None
                    break
                counts["kills"] += 1
                counts["torn_lines"] += torn(folder)
                counts["resumed_from_records"] += records(folder) > 1
                if draw.random() > 1 / 3:
                    break
            run(self.engine, arguments, folder, Kill(), planted)
            return bool(left(folder) == self.expected)


def records(folder: Path) -> int:
    """Whole lines of the journal."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.journal"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", action="store_true")
    args = parser.parse_args()
    if MODEL not in model_names():
        raise SystemExit(f"{MODEL} does not come with this checkout")
    random.seed(args.seed)
    draw, counts, begun = random.Random(args.seed), Counter[str](), time.time()
    wrong = []
    torch.set_num_threads(1)  # a process with more cannot be forked
    engine = Engine.from_pretrained(model_path(MODEL), "cpu")
    with tempfile.TemporaryDirectory() as at:
        every = [Command(engine, name, Path(at)) for name in commands(Path(at))]
        while counts["points"] < args.points:
            command = every[counts["points"] % len(every)]
            right = command.point(draw, counts, args.plant)
            if right is None:
                counts["ended_first"] += 1
                continue
            counts["points"] += 1
            if not right:
                wrong.append(command.name)
            print(
                f"{counts['points']:4} {command.name:16} {'equal' if right else 'DIFFERS'}",
                flush=True,
            )
    found = {**counts, "differ": len(wrong), "commands": len(every)}
    print(json.dumps(found))
    if not args.plant:
        what = "pyttc solve and curve killed with SIGKILL at random points, resumed, compared bit for bit"
        write_evidence("kills", what, begun, **found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
