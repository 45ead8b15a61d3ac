"""Countdown under search: the calculator, what the text of a path may hold, budgets, one ragged batch."""

import gc
import re
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import pyttc
from pyttc import search
from pyttc.search.names import NAMES, Means, named
from pyttc.tasks import countdown_search as countdown
from pyttc.tasks import model_names, model_path
from pyttc.tasks.countdown import Problem
from pyttc.tasks.countdown import test_set as fixed_problems
from pyttc.tasks.countdown_text import problem_of, prompt, verify

from .countdown_models import PROBLEMS

PROMPTS = [prompt(problem) for problem in PROBLEMS]


@pytest.fixture(scope="module")
def means(head):
    return Means(head, countdown.claimed_number, countdown.again, wait="4")


def rate(result, prompt):
    return sum(bool(node.verified) for node in result.tree.nodes if node.prompt == prompt)


def test_the_calculator_gives_the_rates_of_the_sampler(engine, folder):
    from pyttc.tasks.checkpoint import load_model
    from pyttc.tasks.evaluate_countdown import solved

    tries = 512
    strategy = search.SampleN(tries)
    found = pyttc.solve(engine, PROMPTS, strategy, stop_when_verified=False, **countdown.options())
    expected = solved(load_model(folder), PROBLEMS, tries)
    for index, hits in enumerate(expected):
        ours = rate(found[0], index)
        spread = (2 * tries * 0.25) ** 0.5
        assert hits > 20 and abs(ours - hits) < 3.5 * spread * 0.6, (ours, hits)
    tree = found[0].tree
    for node in tree.nodes:
        if node.text.endswith("="):
            assert node.end == "tool"  # an illegal step gets no reply
        elif "=" in node.text:
            assert node.text.endswith(";") and "|" in node.text
    assert {node.end for node in tree.nodes} == {"", "eos", "tool"}


@pytest.mark.parametrize("name", [n for n in NAMES if n != "self-certainty"])
def test_a_named_strategy_solves(engine, means, name):
    options = countdown.options(attempts=name == "revision")
    found = pyttc.solve(engine, PROMPTS, named(name, 32, means), **options)
    assert name in ("greedy", "budget-forcing") or any(result.verified for result in found)
    for result in found:
        if result.verified:
            check = options["verify"]
            assert check(result.prompt, result.answer)
            assert result.solved_after <= result.seconds
        assert result.verified == bool(result.best >= 0 and result.tree.nodes[result.best].verified)


def test_revision_verifies_the_last_attempt(engine, means):
    options = countdown.options(attempts=True)
    never = {**options, "verify": lambda line, text: False}
    found = pyttc.solve(engine, PROMPTS, search.Revision(countdown.again, 8, 4), **never)
    assert any(node.text == PROMPTS[node.prompt] for node in found[0].tree.nodes)
    line = PROMPTS[0]
    good = "8*4=32|32,2;32/2=16|16;"
    assert options["verify"](line, "8+4=12|12,2;12+2=14|14;\n" + line + good)
    assert options["verify"](line, "8+4=12|12,2;" + line + good)
    assert not options["verify"](line, good + "\n" + line + "8+4=12|12,2;")
    assert options["tool"].reply(line, "8+4=12|12,2;\n" + line + "8*4=") == "32|32,2;"


def test_answers_to_vote_on():
    vote = countdown.claimed_number
    assert vote("8*4=32|32,2;32/2=16|16;\n") == "16" == vote("8*4=32;32/2=16;")
    assert vote("8*4=32|32,2;") is None and vote("") is None and vote("8") is None
    assert countdown.steps_shown("8*4=32|32,2;32/2=16|16;\n") == "8*4=32, 32/2=16"


def test_names_say_what_they_lack():
    for name, lacking in (("beam", "reward"), ("revision", "again"), ("budget-forcing", "text")):
        with pytest.raises(ValueError, match=lacking):
            named(name, 4, Means())
    with pytest.raises(ValueError, match="sample-n, "):
        named("thinking", 4, Means())
    with pytest.raises(ValueError, match="n: got 0"):
        named("beam", 0, Means())


@pytest.mark.parametrize("name", ["sample-n", "best-of-n", "beam", "rebase", "asc", "revision"])
def test_flops_are_obeyed(engine, means, name):
    options = countdown.options(attempts=name == "revision")
    run = partial(
        pyttc.solve, engine, PROMPTS, named(name, 32, means), stop_when_verified=False, **options
    )
    whole = run()[0].flops
    prefill = run(pyttc.Budget(tokens=0))[0].flops
    for share in (0.4, 0.8):
        limit = prefill + share * (whole - prefill)
        found = run(pyttc.Budget(flops=limit))[0]
        assert found.stopped == "flops"
        assert 0.6 * limit < found.flops <= 1.001 * limit
        assert found.cost.ran.flops == pytest.approx(found.flops)
        ends = {node.end for node in found.tree.nodes}
        assert ends & {"flops", "room"}


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("limit", ["seconds", "dollars"])
def test_time_is_obeyed_within_a_token(engine, limit):
    seconds, longest, last = 0.05, 0.0, None

    def on_step(run):
        nonlocal longest, last
        longest = max(longest, run.meter.seconds - (last or 0.0))
        last = run.meter.seconds

    budgets = {
        "seconds": pyttc.Budget(seconds=seconds),
        "dollars": pyttc.Budget(dollars=seconds / 3600 * 2.5, dollars_per_hour=2.5),
    }
    found = pyttc.solve(
        engine,
        PROMPTS,
        search.SampleN(256),
        budgets[limit],
        stop_when_verified=False,
        on_step=on_step,
        **countdown.options(),
    )[0]
    assert found.stopped == limit
    assert seconds <= found.seconds
    assert last is None or (seconds <= last + longest and last < seconds + 2 * longest)
    assert last is None or limit in {node.end for node in found.tree.nodes}
    assert found.dollars is None or found.dollars >= 0.9 * seconds / 3600 * 2.5


def test_what_a_solved_problem_leaves_goes_to_the_others(engine):
    def verify_first(line, text):
        return line == PROMPTS[0]

    options = {**countdown.options(), "verify": verify_first}
    strategy = search.SampleN(64, waves=(4,))
    found = pyttc.solve(engine, PROMPTS, strategy, pyttc.Budget(tokens=1200), **options)
    spent = [sum(len(n.tokens) for n in found[0].tree.nodes if n.prompt == p) for p in (0, 1)]
    assert found[0].verified and not found[1].verified
    assert spent[0] < 150 and spent[1] > 1000 and 1190 <= sum(spent) <= 1200


def test_many_puzzles_are_one_ragged_batch(engine, monkeypatch):
    passes = []
    run = type(engine).run
    monkeypatch.setattr(
        type(engine),
        "run",
        lambda self, leaves, *rest: passes.append(leaves.size) or run(self, leaves, *rest),
    )
    options = countdown.options()
    problems = [Problem(p.numbers, target) for p in PROBLEMS for target in range(10, 60)]
    lines = [prompt(problem) for problem in problems]
    found = pyttc.solve(engine, lines, search.SampleN(16), stop_when_verified=False, **options)
    tree = found[0].tree
    written = {}
    for node in tree.nodes:
        key = node.prompt, node.path
        written[key] = written.get(key, 0) + len(node.tokens)
    assert len(lines) == 100 and len(written) == 1600
    assert len(passes) <= max(written.values()) + 1  # as many passes as the longest path has tokens
    assert max(passes) > 800


def test_an_interrupted_search_loses_nothing(engine):
    def press(run):
        if run.cost.ran.decoded > 300:
            raise KeyboardInterrupt

    found = []
    strategy = search.SampleN(32)
    with pytest.raises(KeyboardInterrupt):
        for results in pyttc.stream(
            engine, PROMPTS, strategy, on_step=press, **countdown.options()
        ):
            found = results
    tree = found[0].tree
    assert found[0].stopped == "interrupted"
    assert sum(len(node.tokens) for node in tree.nodes) == found[0].tokens > 300
    assert "interrupted" in {node.end for node in tree.nodes}


def test_later_waves_are_the_same_paths(engine):
    def verified(waves):
        found = pyttc.solve(
            engine,
            PROMPTS,
            search.SampleN(64, waves),
            stop_when_verified=False,
            **countdown.options(),
        )
        tree = found[0].tree
        return {(n.prompt, n.path, tree.text(i)) for i, n in enumerate(tree.nodes) if n.verified}

    assert verified(()) == verified((4, 16)) != set()


def test_a_verified_answer_is_not_ranked_away(engine, means):
    for name in ("best-of-n", "beam", "rebase"):
        found = pyttc.solve(engine, PROMPTS, named(name, 64, means), **countdown.options())
        for prompt_index, result in enumerate(found):
            assert result.verified == (rate(result, prompt_index) > 0)


def test_a_beam_keeps_no_text_twice(engine, means):
    found = pyttc.solve(engine, PROMPTS[:1], search.Beam(means.score, 32), **countdown.options())
    tree = found[0].tree
    below = tree.children()
    going_on = [tree.text(i) for i, n in enumerate(tree.nodes) if below[i] and n.text]
    assert len(going_on) == len(set(going_on))


def test_problem_of_the_examples():
    assert problem_of("1,2>3:1+2=3|3;\n4,2>8:") == Problem((4, 2), 8)
    assert verify("1,2>3:1+2=3|3;\n4,2>8:", "4*2=8|8;")


@pytest.mark.skipif(not model_names(), reason="no model comes with this checkout")
@pytest.mark.parametrize("model", model_names())
def test_shipped_models_solve(model):
    engine = pyttc.Engine.from_pretrained(model_path(model))
    head = countdown.reward_head(model_path(model))
    lines = [prompt(problem) for problem in fixed_problems(3, 20)]
    for name, least in (("sample-n", 12), ("beam", 10)):
        strategy = named(name, 16, Means(head))
        found = pyttc.solve(engine, lines, strategy, **countdown.options())
        assert sum(bool(result.verified) for result in found) >= least


@pytest.mark.parametrize("n", [1, 2, 4, 32])
def test_the_strategy_of_the_readme_runs(engine, n):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "def run(" in b)
    assert len(block.splitlines()) <= 25
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    assert names["Halving"]().n == 32
    for prompts in (PROMPTS, PROMPTS[:1]):
        found = pyttc.solve(
            engine, prompts, names["Halving"](n), pyttc.Budget(tokens=2500), **countdown.options()
        )
        ends = {node.end for node in found[0].tree.nodes}
        assert ("dropped" in ends) == (n > 1) and 0 < found[0].tokens <= 2500
        assert n < 32 or any(result.answer for result in found)


@pytest.mark.nightly
def test_bookkeeping_is_a_small_part(monkeypatch):
    """With a model of 2M weights, on one thread; what the engine, the verifier and the tool take is
    theirs."""
    folder = model_path("countdown-2m")
    engine = pyttc.Engine.from_pretrained(folder)
    options, clock = countdown.options(), Stopwatch()
    for name in ("decode", "append", "fork", "select", "score"):
        monkeypatch.setattr(pyttc.Paths, name, clock.running(getattr(pyttc.Paths, name)))
    monkeypatch.setattr(pyttc.Engine, "prefill", clock.running(pyttc.Engine.prefill))
    monkeypatch.setattr(search.Run, "_watch", clock.paused(search.Run._watch))
    options["verify"] = clock.running(options["verify"])
    options["tool"] = search.Tool("=", clock.running(options["tool"].reply))
    lines = [prompt(problem) for problem in fixed_problems(4, 20)]
    means = Means(countdown.reward_head(folder), countdown.claimed_number, countdown.again)
    shares, before = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a sweep over all that was ever imported would count as bookkeeping
    for name in ("sample-n", "best-of-n", "beam", "dvts", "rebase", "particle-filter", "majority"):
        clock.spent, start = 0.0, time.thread_time()
        strategy = named(name, 64, means)
        pyttc.solve(engine, lines, strategy, stop_when_verified=False, **options)
        whole = time.thread_time() - start
        shares[name] = round(1 - clock.spent / whole, 3)
    gc.unfreeze()
    torch.set_num_threads(before)
    assert max(shares.values()) < 0.05, shares


@pytest.mark.nightly
def test_a_beam_takes_little_longer_than_sampling(engine, means):
    """A token of a beam against a token of best-of-N."""
    folder = model_path(model_names()[0]) if model_names() else None
    if folder:
        engine = pyttc.Engine.from_pretrained(folder)
        means = Means(countdown.reward_head(folder))
    lines = [prompt(problem) for problem in fixed_problems(4, 20)] if folder else PROMPTS

    def token(name):
        start = time.thread_time()
        strategy = named(name, 64, means)
        found = pyttc.solve(
            engine, lines, strategy, stop_when_verified=False, **countdown.options()
        )
        return (time.thread_time() - start) / found[0].tokens

    ratios = [token("beam") / token("best-of-n") for _ in range(5)]
    assert sorted(ratios)[2] <= 1.5


class Stopwatch:
    """Thread time inside some functions, less that inside others which these call."""

    def __init__(self):
        self.spent, self.on = 0.0, False

    def running(self, function):
        return self.switching(function, True)

    def paused(self, function):
        return self.switching(function, False)

    def switching(self, function, on):
        def timed(*args, **kwargs):
            if self.on == on:
                return function(*args, **kwargs)
            start, self.on = time.thread_time(), on
            try:
                return function(*args, **kwargs)
            finally:
                took = time.thread_time() - start
                self.spent += took if on else -took
                self.on = not on

        return timed


def test_threads_do_not_matter(engine, means):
    def texts():
        found = pyttc.solve(engine, PROMPTS, named("beam", 16, means), **countdown.options())
        return [node.text for node in found[0].tree.nodes]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = texts()
        torch.set_num_threads(2)
        assert texts() == one
    finally:
        torch.set_num_threads(before)
