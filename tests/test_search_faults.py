"""Faults in the middle of a search: each ends in an exception, with every page given back, every path as
before or finished, and an engine that goes on with the same bits."""

import gc
import signal
import time

import numpy as np
import pytest

import pyttc
from pyttc import search
from pyttc.search.names import Means, named
from pyttc.tasks import countdown_search as countdown
from pyttc.tasks.countdown_text import prompt

from .countdown_models import PROBLEMS
from .resumed import solve
from .trust import interrupts

PROMPTS = [prompt(problem) for problem in PROBLEMS]


class Fault:
    """A scorer that is fine until its third call."""

    def __init__(self, wrong):
        self.wrong, self.calls = wrong, 0

    def __call__(self, paths):
        self.calls += 1
        scores = np.linspace(0.1, 0.9, len(paths))
        return self.wrong(scores) if self.calls == 3 else scores


def raises(scores):
    raise RuntimeError("the scorer broke")


def nan(scores):
    scores[-1] = np.nan
    return scores


SCORER_FAULTS = {
    "raises": (raises, RuntimeError, "the scorer broke"),
    "gives NaN": (nan, ValueError, "scorer: gave NaN for path 7 of 8"),
    "gives too few": (lambda scores: scores[1:], ValueError, "scorer: gave 7 scores, expected 8"),
    "gives too many": (lambda scores: [*scores, 1.0], ValueError, "scorer: gave 9 scores"),
    "gives texts": (lambda scores: ["x"] * len(scores), (TypeError, ValueError), "scorer"),
    "gives nothing": (lambda scores: None, (TypeError, ValueError), "scorer"),
}


@pytest.mark.parametrize("fault", SCORER_FAULTS)
@pytest.mark.parametrize("name", ["beam", "rebase"])
def test_a_scorer_that_fails_ends_the_search_alone(engine, head, name, fault):
    wrong, kind, said = SCORER_FAULTS[fault]
    expected, free = solve(engine, PROMPTS[:1], name, head), engine.free_pages
    held = engine.prefill(PROMPTS[1]).fork(2, seed=1).decode(max_new_tokens=4)
    before = held.tokens.tolist()
    strategy = named(name, 8, Means(Fault(wrong)))
    with pytest.raises(kind, match=said):
        search.solve(engine, PROMPTS[:1], strategy, stop_when_verified=False, **countdown.options())
    assert held.tokens.tolist() == before and len(held.decode(max_new_tokens=2)) == 2
    held.free()
    gc.collect()
    assert engine.free_pages == free
    assert solve(engine, PROMPTS[:1], name, head) == expected


@pytest.mark.parametrize("score", [-np.inf, np.inf])
@pytest.mark.parametrize("name", ["beam", "dvts", "rebase", "particle-filter", "weighted-vote"])
def test_infinite_scores_are_scores(engine, name, score):
    strategy = named(name, 8, Means(lambda paths: np.full(len(paths), score)))
    found = search.solve(engine, PROMPTS, strategy, stop_when_verified=False, **countdown.options())
    assert {node.score for node in found[0].tree.nodes if node.score is not None} == {score}


@pytest.mark.parametrize("fault", ["verify", "tool", "answer"])
def test_a_callable_that_raises_ends_the_search_alone(engine, head, fault):
    expected, free = solve(engine, PROMPTS, "majority", head), engine.free_pages
    calls = []

    def broken(*given):
        calls.append(given)
        if len(calls) > 5:
            raise RuntimeError(f"{fault} broke")
        return None if fault == "answer" else False if fault == "verify" else "1|1;"

    options = countdown.options()
    options |= {"verify": {"verify": broken}, "tool": {"tool": search.Tool("=", broken)}}.get(
        fault, {}
    )
    strategy = search.Majority(broken if fault == "answer" else countdown.claimed_number, n=16)
    with pytest.raises(RuntimeError, match=f"{fault} broke"):
        search.solve(engine, PROMPTS, strategy, **options)
    gc.collect()
    assert engine.free_pages == free
    assert solve(engine, PROMPTS, "majority", head) == expected


def test_what_hangs_is_stopped_by_its_timeout(engine):
    """A verifier and a scorer of texts that do not come back for one prompt of two."""
    sandbox = search.Sandbox("tests.sandboxed:hangs_for_eight", seconds=2)
    options = {**countdown.options(), "verify": sandbox, "stop_when_verified": False}
    begun = time.monotonic()
    found = search.solve(engine, PROMPTS, search.BestOfN(2, sandbox.score), **options)
    for node in found[0].tree.nodes:
        hung = node.prompt == 0
        assert node.score == (-np.inf if hung else 1.0)
        assert node.verified is (None if node.end != "eos" else not hung)
    assert time.monotonic() - begun < 120


def test_ctrl_c_at_random_moments(engine, head, tmp_path):
    assert interrupts.interrupt(engine, head, tmp_path, moments=10)["within_a_search"] > 2


def test_ctrl_c_in_a_scorer_waits_for_it_and_a_second_does_not(engine):
    """The first is put off to where the model has taken a token; the second ends what hangs."""
    presses = []

    def slow(paths):
        signal.raise_signal(signal.SIGINT)
        presses.append("put off")
        signal.raise_signal(signal.SIGINT)
        presses.append("too late")

    free = engine.free_pages
    with pytest.raises(KeyboardInterrupt):
        search.solve(engine, PROMPTS, search.BestOfN(4, slow), **countdown.options())
    gc.collect()
    assert presses == ["put off"] and engine.free_pages == free


def test_an_interrupted_stream_gives_the_best_so_far(engine):
    found = []

    def press(run):
        if run.meter.tokens > 100:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        for results in pyttc.stream(
            engine, PROMPTS, search.SampleN(32), on_step=press, **countdown.options()
        ):
            found = results
    tree = found[0].tree
    assert found[0].stopped == "interrupted" and {n.end for n in tree.nodes} >= {"interrupted"}
    assert sum(len(node.tokens) for node in tree.nodes) == found[0].tokens > 100
