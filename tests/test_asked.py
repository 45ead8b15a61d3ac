"""What a journal says was asked for: what differs is told apart, and what cannot be compared is refused."""

import functools
import json
import os
import re
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import pyttc
from pyttc import search
from pyttc.search.asked import described
from pyttc.tasks import countdown_search as countdown
from pyttc.tasks.countdown_text import prompt, verify

from .countdown_models import PROBLEMS

PROMPTS = [prompt(problem) for problem in PROBLEMS]


def test_what_is_asked_for_is_described():
    seen = []

    def inside(text):
        seen.append(text)
        return verify(text, text)

    def outside(text):
        return inside(text)

    assert described(outside)["with"] == {"inside": described(inside)}
    assert described(inside).endswith("inside") and described(str.strip) == "None.str.strip"
    assert described(verify) == "pyttc.tasks.countdown_text.verify"
    assert described(float("inf")) == "inf" and described((1, None)) == [1, None]
    assert described(search.SampleN(4)) == {
        "is": "pyttc.search.sample_n.SampleN",
        "n": 4,
        "waves": [],
    }
    first, second = (described(pyttc.LinearHead(torch.full((3,), w))) for w in (1.0, 2.0))
    assert first["weight"] != second["weight"] and first["is"].endswith("LinearHead")
    json.dumps([first, described(object()), described(lambda: 0)])


class Plain:
    """A strategy that is no dataclass."""

    def __init__(self, n, keep):
        self.n, self._keep = n, keep

    def run(self, run):
        paths = run.fork(run.root, self.n)
        run.select(paths, np.concatenate([rows[: self._keep] for _, rows in run.groups(paths)]))
        yield from run.finish(paths)


class Slotted:
    __slots__ = ("__hidden", "shown")

    def __init__(self, hidden, shown):
        self.__hidden, self.shown = hidden, shown


class Listing(list):
    pass


def scaled(by):
    def scorer(paths, power=by):
        return paths.lengths * by**power

    return scorer


def answers(known):
    def verifier(prompt, text):
        return known.get(prompt) == text

    return verifier


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Plain(1, x),
        lambda x: Slotted(x, 1),
        lambda x: Slotted(1, x),
        lambda x: Listing([x]),
        lambda x: scaled(x),
        lambda x: functools.partial(max, x),
        lambda x: functools.lru_cache(scaled(x)),
        lambda x: Plain(1, x).run,
        lambda x: {x: 1}.get,
        lambda x: lambda text, n=x: n,
        lambda x: lambda text, *, n=(x,): n,
        lambda x: re.compile(str(x)),
        lambda x: {x},
        lambda x: np.full(3, x),
        lambda x: np.float32(x),
        lambda x: Fraction(x, 7),
        lambda x: Path(str(x)),
        lambda x: bytes([x]),
        lambda x: [torch.float32, torch.float16][x - 1],
    ],
)
def test_what_differs_is_described_differently(make):
    first, second = described(make(1)), described(make(2))
    assert first != second and first == described(make(1))
    json.dumps(first)


def test_notes_of_a_function_and_what_holds_itself_are_no_matter():
    assert described(answers({"a": 1})) == described(answers({}))
    ring = Plain(1, 2)
    ring.me = ring
    assert described(ring)["me"].endswith("Plain")


@pytest.mark.parametrize(
    "make", [lambda: (n for n in ()), threading.Lock, lambda: open(os.devnull)]
)
def test_what_cannot_be_compared_is_refused(engine, tmp_path, make):
    path = tmp_path / "run.journal"
    held = make()
    with pytest.raises(TypeError, match=r"^strategy.n: got a .*, expected something a journal can"):
        pyttc.solve(engine, PROMPTS, Plain(held, 1), journal=path)
    assert not path.exists()


def test_a_curve_of_a_changed_strategy_is_measured_anew(engine, tmp_path):
    def tokens(keep, **options):
        makers = {"plain": lambda n: Plain(n, keep)}
        options |= countdown.options()
        (point,) = pyttc.curve(engine, PROMPTS, makers, sizes=(4,), **options)
        return point.tokens

    kept = [tokens(keep, journal=tmp_path / "run.journal") for keep in (1, 4, 1)]
    assert kept == [tokens(keep) for keep in (1, 4, 1)] and kept[0] < kept[1]
