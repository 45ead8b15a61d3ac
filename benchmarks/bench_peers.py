"""Decoding N paths of one prompt: pyttc beside the engines one would otherwise take on a CPU.

    python -m benchmarks.bench_peers [--model 125M|0.5B] [--threads 1,2] [--peers pyttc,openvino,...]
        [--paths 1,8,32,64] [--prompts 128,1024,4096] [--rounds 3] [--steps 10] [--dry-run]

Every engine is a child process (benchmarks/peers) that loads the same random weights once; the parent asks
them in turn, several rounds, and counts what they drew. Those of other makers are installed by pip into
build/peers, an environment each. One that does not install or run is left out with its reason. One thread
is timed in CPU time of the child, several on the wall. Rows go to benchmarks/rows/peers/<device>.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from . import common, models, table

ROOT = common.HERE.parent
BUILD = ROOT / "build" / "peers"
LIMITS = {"install": 3600, "load": 900, "answer": 900}  # seconds
MOST = 12.0  # seconds of steps that one engine may take for a cell; beyond it takes fewer steps
# Seconds before an engine's turn: threads of the one before may spin for 0.2 s after its last step.
REST = 0.5


@dataclass(frozen=True)
class Engine:
    """A module of benchmarks/peers; own: whether it has an environment of its own, of the packages in
    <module>.txt beside it."""

    module: str
    dtype: str = "bfloat16"
    own: bool = True


ENGINES = {
    "pyttc": Engine("pyttc", own=False),
    "torch cascade": Engine("cascade", own=False),
    "transformers": Engine("transformers", own=False),
    "openvino": Engine("openvino"),
    "llama.cpp": Engine("llama"),
    "vllm": Engine("vllm"),
    "ctranslate2": Engine("ctranslate2", "float32"),
    "llama.cpp int8": Engine("llama", "int8"),
    "ctranslate2 int8": Engine("ctranslate2", "int8"),
}


class Unavailable(Exception):
    """A peer cannot be asked; says why."""


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def checkpoint(name: str) -> Path:
    """The model of random weights, as transformers saves it in bfloat16."""
    folder = BUILD / "models" / name
    if not (folder / "config.json").exists():
        made = folder.with_name(f"{name}.part")
        models.plain(name, torch.bfloat16).save_pretrained(made)
        models.words(models.CONFIGS[name].vocab_size).save_pretrained(made)
        made.rename(folder)
    return folder


def python_of(engine: Engine, torch_spec: str) -> str:
    """The interpreter of an engine's environment, which is made if it is not there or is another's."""
    if not engine.own:
        return sys.executable
    wanted = common.HERE / "peers" / f"{engine.module}.txt"
    folder, log = BUILD / engine.module, BUILD / f"{engine.module}.install.log"
    python, built = folder / "bin" / "python", folder / "built"
    if built.exists() and built.read_text() == wanted.read_text():
        return str(python)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    held = folder / "torch.txt"
    held.write_text(torch_spec + "\n")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "install", torch_spec],  # first and alone, so that nothing pulls another
        [*pip, "install", "-c", str(held), "-r", str(wanted)],
        # what else of torch's family pip may have chosen was built for another torch
        [*pip, "uninstall", "-y", "torchvision", "torchaudio", "torchcodec"],
    ]
    try:
        with log.open("w") as out:
            for command in commands:
                subprocess.run(
                    command, check=True, stdout=out, stderr=out, timeout=LIMITS["install"]
                )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"took over {LIMITS['install']} s to install") from None
    except (OSError, subprocess.CalledProcessError):
        raise Unavailable(f"does not install: {last_line(log)}") from None
    built.write_text(wanted.read_text())
    return str(python)


def command_of(engine: Engine, model: Path, threads: int, torch_spec: str) -> list[str]:
    module = f"benchmarks.peers.{engine.module}"
    return [python_of(engine, torch_spec), "-m", module, str(model), str(threads), engine.dtype]


class Child:
    """An engine in a process of its own."""

    def __init__(self, name: str, command: Sequence[str], threads: int) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        self.log = BUILD / f"{name.replace(' ', '_')}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.loaded = self.read(LIMITS["load"])

    def ask(self, prompt: list[int], paths: int, steps: int) -> dict[str, Any]:
        """The child's answer, checked; see `child.answer`."""
        assert self.process.stdin
        request = {"prompt": prompt, "paths": paths, "steps": steps}
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except OSError:
            pass  # it died; the log says of what
        got = self.read(LIMITS["answer"])
        if "skip" not in got and (why := wrong(got, paths, steps)):
            self.close()
            raise Unavailable(why)
        return got

    def read(self, limit: float) -> dict[str, Any]:
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        assert self.process.stdout
        line = self.process.stdout.readline()
        in_time = timer.is_alive()
        timer.cancel()
        if not line:
            code = self.process.wait()
            self.close()
            if not in_time:
                raise Unavailable(f"no answer in {limit:g} s")
            ended = f"ended by {signal.Signals(-code).name}: " if code < 0 else ""
            raise Unavailable(ended + last_line(self.log))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process, and waits for it."""
        with self.process as process:
            process.kill()


def wrong(got: dict[str, Any], paths: int, steps: int) -> str | None:
    """Why an answer does not hold what was asked for, or None."""
    tokens = got["tokens"]
    lengths = sorted({len(path) for path in tokens})
    if len(tokens) != paths or lengths != [1 + steps]:
        return f"gave {len(tokens)} paths of {lengths} tokens, not {paths} of {1 + steps}"
    distinct = len({tuple(path) for path in tokens})
    if distinct <= paths // 2:  # two of a few tokens may well be equal
        return f"of {paths} paths only {distinct} are distinct"
    if not len(got["wall"]) == len(got["cpu"]) == 1 + steps:
        return f"timed {len(got['wall'])} tokens, not {1 + steps}"
    return None


class Field:
    """The engines of a run, as many as answer: `lost` says of the others why they do not."""

    def __init__(self, names: list[str], model: Path, threads: int, torch_spec: str) -> None:
        self.clock = "cpu" if threads == 1 else "wall"
        self.children: dict[str, Child] = {}
        self.lost: dict[str, str] = {}
        for name in names:
            try:
                command = command_of(ENGINES[name], model, threads, torch_spec)
                self.children[name] = Child(name, command, threads)
            except Unavailable as why:
                self.lost[name] = str(why)

    def ask(self, name: str, *request: Any) -> dict[str, Any]:
        """A child's answer, or {"skip": why there is none}."""
        if name not in self.children:
            return {"skip": self.lost[name]}
        try:
            return self.children[name].ask(*request)
        except Unavailable as why:
            self.lost[name] = str(why)
            del self.children[name]
            return {"skip": str(why)}

    def cell(
        self, prompt: list[int], paths: int, steps: int, rounds: int
    ) -> dict[str, dict[str, Any]]:
        """What the steps of each engine take, all in turn after one that warms up: {"why": ...} where it
        cannot be said."""
        answers = {name: [self.ask(name, prompt, paths, 2)] for name in [*self.children]}
        for turn in range(rounds):
            order = deque(answers)
            order.rotate(-turn)
            for name in order:
                first = answers[name][0]
                if "skip" not in answers[name][-1]:
                    fit = int(MOST / rounds / max(first["wall"][-1], 1e-9))
                    count = max(2, min(steps, fit))
                    time.sleep(REST)
                    answers[name].append(self.ask(name, prompt, paths, count))
        found = {name: {"why": why} for name, why in self.lost.items()}
        return found | {name: self.summary(got, paths) for name, got in answers.items()}

    def summary(self, answers: list[dict[str, Any]], paths: int) -> dict[str, Any]:
        if "skip" in answers[-1]:
            return {"why": answers[-1]["skip"]}
        rest = answers[1:]
        steps = [seconds for got in rest for seconds in got[self.clock][1:]]
        timing = common.summary(steps)
        return {
            "step_ms": round(1e3 * timing.median, 3),
            "p20_ms": round(1e3 * timing.p20, 3),
            "p80_ms": round(1e3 * timing.p80, 3),
            "tokens_per_second": round(paths / timing.median, 1),
            "steps": len(steps),
            "start_s": round(statistics.median(got[self.clock][0] for got in rest), 4),
            "peak_mib": max(got["peak_mib"] or 0 for got in answers),
        }

    def close(self) -> None:
        for child in self.children.values():
            child.close()


def rows(args: argparse.Namespace, threads: int, console: Console) -> Iterator[dict[str, Any]]:
    """A row a cell."""
    field = Field(args.peers, checkpoint(args.model), threads, args.torch)
    try:
        loaded = {name: child.loaded for name, child in field.children.items()}
        for name in args.peers:
            said = field.lost.get(name) or loaded[name]["engine"]
            console.print(f"{name}: {said}", markup=False)
        rng = np.random.default_rng(0)
        for length in args.prompts:
            prompt = rng.integers(3, 32000, length).tolist()
            prefill = {name: field.ask(name, prompt, 1, 2).get(field.clock) for name in loaded}
            for paths in args.paths:
                found = field.cell(prompt, paths, args.steps, args.rounds)
                for name, got in found.items():
                    if "why" in got:
                        console.print(
                            f"{name} without {paths} of {length}: {got['why']}", markup=False
                        )
                yield {
                    "op": "peers",
                    "impl": "engine",
                    "dtype": "bfloat16",
                    "shape": {"model": args.model, "paths": paths, "prompt": length},
                    "threads": threads,
                    "clock": "process CPU" if threads == 1 else "wall",
                    "engines": {
                        name: {
                            "dtype": ENGINES[name].dtype,
                            **loaded.get(name, {}),
                            "prefill_s": (prefill.get(name) or [None])[0],
                            **found[name],
                        }
                        for name in args.peers
                    },
                    **common.origin(),
                }
    finally:
        field.close()


def numbers(text: str) -> list[int]:
    return sorted({int(n) for n in text.split(",")})


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - set(ENGINES):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)} not among {', '.join(ENGINES)}")
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_peers")
    parser.add_argument("--model", default="125M", choices=models.CONFIGS)
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--peers", type=names, default=[*ENGINES], help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--paths", type=numbers, default=[1, 8, 32, 64])
    parser.add_argument("--prompts", type=numbers, default=[128, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--torch", default="torch==2.13.0", help="what the peers' pip installs")
    parser.add_argument("--dry-run", action="store_true", help="print rows, keep none")
    args = parser.parse_args()
    console, found = Console(stderr=True), []
    path = common.HERE / "rows" / "peers" / f"{common.device_name()}.jsonl"
    for threads in args.threads:
        for row in rows(args, threads, console):
            found.append(row)
            console.print(table.peer_lines([row])[-1], markup=False)
            if not args.dry_run:
                path.parent.mkdir(exist_ok=True)
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print("\n".join(table.peer_lines(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
