"""Checks of what callers of a search give, before anything is spent: an error names the argument, what came,
and what is expected."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..engine import Engine
from ..engine.arguments import array_of, whole_number
from ..engine.decode import SAMPLING
from ..engine.stops import Stops
from ..ops.sample import sample
from .budget import Budget

OPTIONS = (
    *("verify", "tool", "until", "delimiter", "max_new_tokens"),
    *("stop_when_verified", "seed", "salt", "on_step"),
)
A_STRATEGY = "a strategy, such as search.SampleN(n=16)"


def expect(name: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise TypeError(f"{name}: got {reprlib.repr(value)}, expected {expected}")


def texts(name: str, value: Any) -> list[str]:
    """One text or several, as a list."""
    given = [value] if isinstance(value, str) else value
    several: list[Any] = list(given) if isinstance(given, Iterable) else [None]
    expect(name, value, all(isinstance(one, str) for one in several), "a text or several")
    if not several:
        raise ValueError(f"{name}: got none, expected at least one text")
    return several


def strategy(value: Any, name: str = "strategy") -> None:
    runs = callable(getattr(value, "run", None)) and not isinstance(value, type)
    expect(name, value, runs, A_STRATEGY)


def makers(value: Any) -> None:
    """The strategies of a curve."""
    expected = "names and functions of n, such as {'sample': search.SampleN}"
    expect("strategies", value, isinstance(value, Mapping), expected)
    for name, make in value.items():
        expected = f"a function that makes {A_STRATEGY} for n paths"
        expect(f"strategies[{name!r}]", make, callable(make), expected)


def sizes(value: Any) -> list[int]:
    """The sizes of a curve."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    expect("sizes", value, several, "rising whole numbers >= 1, such as (1, 4, 16)")
    found = [whole_number("sizes", n, 1) for n in value]
    if not found or found != sorted(set(found)):
        raise ValueError(f"sizes: got {found}, expected rising numbers >= 1")
    return found


def search(engine: Any, budget: Any, options: Mapping[str, Any]) -> None:
    """The engine, the budget and the options of a search."""
    expect("engine", engine, isinstance(engine, Engine), "a pyttc.Engine")
    expect("budget", budget, isinstance(budget, Budget | None), "a pyttc.Budget or None")
    given = {**dict.fromkeys(OPTIONS), "seed": 0, **options}
    for name, of in (("verify", "(prompt, text)"), ("on_step", "the run")):
        fits = given[name] is None or callable(given[name])
        expect(name, given[name], fits, f"a function of {of} or None")
    delimiter, tool = given["delimiter"], given["tool"]
    fits = delimiter is None or (isinstance(delimiter, str) and delimiter != "")
    expect("delimiter", delimiter, fits, "a text that ends a step, or None")
    fits = isinstance(getattr(tool, "until", None), str) and callable(getattr(tool, "reply", None))
    expect("tool", tool, tool is None or fits, "a search.Tool or None")
    for name, stop in (("until", given["until"]), ("tool.until", getattr(tool, "until", None))):
        Stops(stop, engine.tokenizer, engine.model.vocab, name)
    if given["max_new_tokens"] is not None:
        whole_number("max_new_tokens", given["max_new_tokens"], 1)
    whole_number("seed", given["seed"], 0)
    sampling(engine, {name: one for name, one in options.items() if name not in OPTIONS})


def sampling_names(given: Mapping[str, Any]) -> None:
    known = (*SAMPLING, "mask", "confidence")
    for name in given:
        if name not in known:
            raise TypeError(
                f"{name}: no option of a search; those of sampling are {', '.join(known)}"
            )


def sampling(engine: Engine, given: Mapping[str, Any]) -> None:
    """How tokens are drawn. Numbers are tried on a row of logits, arrays when there are paths."""
    sampling_names(given)
    whole_number("confidence", given.get("confidence", 0), 0, min(engine.model.vocab, 1024))
    numbers = {}
    for name in (name for name in SAMPLING if name in given):
        if isinstance(given[name], (int, float)):
            numbers[name] = given[name]
        else:
            array_of(name, given[name], "a number, or one for each path")
    row, zero = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
    sample(row, seed=0, path_ids=zero, positions=zero, **numbers)


def verdict(value: Any, text: str) -> bool:
    """What a verifier says of a text: True or False, 1 or 0, or None for a text with which it failed."""
    found = value.item() if getattr(value, "ndim", None) == 0 else value
    if found is None:
        return False
    if not isinstance(found, (bool, int, float)) or found not in (0, 1):
        raise ValueError(
            f"verify: gave {reprlib.repr(value)} for {reprlib.repr(text)}, expected True or False"
        )
    return bool(found)
