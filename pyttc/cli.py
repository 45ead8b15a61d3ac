"""The `pyttc` command; `python -m pyttc` is the same."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from .commands import bench, curve, info, show, solve, verify
from .commands.common import BadInput

COMMANDS = {
    "info": info,
    "verify": verify,
    "bench": bench,
    "solve": solve,
    "curve": curve,
    "show": show,
}
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        one_line_error(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0; 2 for bad input, which one line names; 130 when
    it was interrupted."""
    parser = Parser(prog="pyttc", description="Test-time compute for PyTorch.")
    parser.add_argument("--version", action="version", version=f"pyttc {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for command in COMMANDS.values():
        command.add(commands)
    args = parser.parse_args(argv)
    try:
        code: int = COMMANDS[args.command].run(args)
        return code
    except BadInput as error:
        one_line_error(str(error))
    except KeyboardInterrupt:
        print("pyttc: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def one_line_error(message: str) -> NoReturn:
    line = " ".join(message.split())
    print(f"pyttc: {line} (pyttc --help says more)", file=sys.stderr)
    raise SystemExit(2)
