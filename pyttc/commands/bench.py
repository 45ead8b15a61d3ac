"""`pyttc bench`: an op at a shape of one's own, beside other ways of doing the same."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
from collections.abc import Callable
from typing import Any

import torch

from ..dispatch import ops
from .common import BadInput, number

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="an op at a shape of your own, checked, timed and beside torch",
        description="Checks one call of an op against its reference, then times it in turns with other "
        "ways of doing the same, on inputs that no cache holds. "
        + " ".join(f"{name}: {shape_of(name)}." for name in sorted(ops)),
    )
    parser.add_argument("--op", required=True, choices=sorted(ops), metavar="OP")
    parser.add_argument("--threads", type=number(1), help="torch's")
    parser.add_argument("--seconds", type=number(0, float), default=3.0, help="to measure for (3)")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    shapes = parser.add_argument_group("shape, as far as the op has it")
    for name, parse in {n: p for op in ops for n, p in shape(op).items()}.items():
        shapes.add_argument(flag(name), type=parse, dest=name, metavar=name.upper())


def run(args: argparse.Namespace) -> int:
    common, table = (importlib.import_module(f"pyttc.benchmarks.{n}") for n in ("common", "table"))
    every = {name for op in ops for name in shape(op)}
    given = {name: value for name in every if (value := getattr(args, name)) is not None}
    for name in given:
        if name not in shape(args.op):
            raise BadInput(f"{flag(name)}: {args.op} has {shape_of(args.op)}")
    try:
        case = cases_of(args.op)(**given)
        threads = args.threads or torch.get_num_threads()
        (row,) = common.rows(iter([case]), threads, args.seconds)
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise BadInput(f"{args.op} cannot run at that shape: {error}") from None
    print(json.dumps(row) if args.json else "\n".join(table.lines([row])))
    if not row["checked"]:
        print("the output differs from the reference: the times mean nothing")
    return 0 if row["checked"] else 1


def cases_of(op: str) -> Callable[..., dict[str, Any]]:
    made: Callable[..., dict[str, Any]] = importlib.import_module(
        f"pyttc.benchmarks.bench_{op}"
    ).case
    return made


def shape(op: str) -> dict[str, Callable[[str], Any]]:
    """What says the shape of an op's benchmark, and how each is read from text."""
    found = inspect.signature(cases_of(op), eval_str=True).parameters
    return {name: readers(parameter.default) for name, parameter in found.items()}


def readers(default: Any) -> Callable[[str], Any]:
    if isinstance(default, torch.dtype):
        return dtype
    if isinstance(default, tuple):
        return numbers
    if isinstance(default, (int, float)):
        # Of nothing there is nothing to time.
        least = 1 if isinstance(default, int) and default else 0
        return number(least, type(default))
    return str


def shape_of(op: str) -> str:
    return ", ".join(map(flag, shape(op)))


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def dtype(text: str) -> torch.dtype:
    if text not in DTYPES:
        raise argparse.ArgumentTypeError(f"got {text!r:.40}, expected one of {', '.join(DTYPES)}")
    return DTYPES[text]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(number(1)(part) for part in text.split(","))
