"""Command lines: parsed, or refused in one line with exit code 2; never a traceback."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace
from unittest.mock import patch

from pyttc import cli
from tests.fuzz import Reader

WORDS = [
    *("solve", "curve", "show", "info", "verify", "--help", "--version", "--", "-", "", "=", "-n"),
    *("--model", "--device", "--n", "--strategy", "--seconds", "--tokens", "--flops", "--save"),
    *("--prompt", "--html", "--steps", "--json", "--seed", "--problems", "--numbers", "--temperature"),
    *("0", "1", "1e308", "inf", "9" * 400, "0x10", "beam", "sample-n", "1,2>3", "run.json", "nan", "-1"),
]  # fmt: skip
LINES = (
    "show run.json --steps " + "9" * 400,
    "solve 1,2>3 --n inf",
    "curve --seconds nan --problems -1",
)
SEEDS = (b"", *(bytes(map(WORDS.index, line.split(" "))) for line in LINES))


def target(data: bytes) -> None:
    reader, words = Reader(data), []
    while reader.at < len(data) and len(words) < 12:
        pick = reader.below(len(WORDS) + 4)
        if pick < len(WORDS):
            words.append(WORDS[pick])
        else:
            words.append(reader.take(1 + reader.below(12)).decode("utf-8", "replace"))
    parsed = {name: SimpleNamespace(add=c.add, run=lambda args: 0) for name, c in COMMANDS.items()}
    out, error = io.StringIO(), io.StringIO()
    with (
        patch.object(cli, "COMMANDS", parsed),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        try:
            code = cli.main(words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
    assert code in (0, 2), words
    assert code == 0 or error.getvalue().count("\n") == 1, words


COMMANDS = dict(cli.COMMANDS)
