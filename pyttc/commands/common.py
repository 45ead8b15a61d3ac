"""What the commands share: errors of the user, models, budgets, text that is safe on a terminal."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class BadInput(ValueError):
    """What the user gave cannot be used; the message is one line that names it."""


def number(low: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """An argparse type: a finite number of at least `low`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            fits = math.isfinite(value) and value >= low
        except (ValueError, OverflowError):
            fits = False
        if not fits:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"got {text!r:.40}, expected {what} >= {low:g}")
        return value

    return parse


def unescaped(given: str) -> str:
    r"""An argparse type: a text, in which \n and other escapes stand for what a shell cannot say."""
    try:
        found = given.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"got {given!r:.40}: {error.reason}") from None
    if not found:
        raise argparse.ArgumentTypeError("got an empty text, expected one that can be met")
    return found


def add_model(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--model", metavar="DIR", help=help)
    parser.add_argument("--device", help="cpu or cuda; a GPU where there is one")


def model_folder(name: str | None) -> Path:
    """The folder of a model: a directory, the name of one that comes with pyttc, or the largest of these."""
    from ..tasks import model_names, model_path

    names = model_names()
    if name is None and not names:
        raise BadInput("no model comes with this installation: name one with --model DIR")
    if name is None or name in names:
        return model_path(name or names[0])
    if not (Path(name) / "config.json").is_file():
        raise BadInput(
            f"--model: {name!r} holds no config.json, and no model of that name comes along"
        )
    return Path(name)


def load_engine(folder: Path, device: str | None) -> Any:
    """The engine, with nothing but errors on the screen."""
    from transformers.utils import logging

    from ..engine import Engine

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return Engine.from_pretrained(folder, device)
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise BadInput(f"--model: {folder} cannot be served: {error}") from None


def add_budget(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "budget, of all puzzles together; the first that is used up ends it"
    )
    group.add_argument("--tokens", type=number(1), help="new tokens")
    group.add_argument("--seconds", type=number(0, float), help="wall time")
    group.add_argument("--flops", type=number(0, float), help="floating-point operations")
    group.add_argument("--dollars", type=number(0, float), help="money, at --dollars-per-hour")
    group.add_argument("--dollars-per-hour", type=number(0, float), help="the machine's price")


def budget(args: argparse.Namespace) -> Any:
    from ..search import Budget

    try:
        return Budget(args.tokens, args.seconds, args.flops, args.dollars, args.dollars_per_hour)
    except ValueError as error:
        raise BadInput(str(error)) from None


def plain(text: str, limit: int = 2000) -> str:
    """Text of a model for a terminal: without control characters, line ends as a sign, cut at `limit`."""
    shown = "".join(
        c if c.isprintable() else "\u23ce" if c == "\n" else "\ufffd" for c in text[:limit]
    )
    return shown + ("..." if len(text) > limit else "")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in one line why a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def journaling(path: Path | None) -> Iterator[None]:
    """Says in one line why a journal cannot be used or written."""
    from ..search.journal import JournalError

    try:
        yield
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from None
    except JournalError as error:
        raise BadInput(str(error)) from None
