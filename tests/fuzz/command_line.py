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
    *("0", "1", "-1", "1e308", "nan", "inf", "9" * 400, "0x10", "beam", "sample-n", "1,2>3", "run.json"),
]  # fmt: skip
SEEDS = (b"", b"\x00\x12", b"\x02\x27\x12\x22", b"\x00\x0e\x22", bytes(range(12)))


def target(data: bytes) -> None:
    reader, words = Reader(data), []
    while reader.at < len(data) and len(words) < 12:
        pick = reader.below(len(WORDS) + 4)
        text = reader.take(pick % 8 * 4).decode("utf-8", "replace")
        words.append(WORDS[pick] if pick < len(WORDS) else text)
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
