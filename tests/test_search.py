"""Strategies on a tiny random model: budgets, determinism, the record, verifiers and tools."""

import math
import re

import numpy as np
import pytest
import torch

import pyttc
from pyttc import search
from pyttc.search.events import verdicts
from pyttc.search.majority import leader_holds
from pyttc.search.particle_filter import systematic
from pyttc.search.rebase import shares
from pyttc.search.statistics import bootstrap_interval, pass_at_k

from . import tiny_models

PROMPTS = ["one two three", "two plus two"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tiny_models.make("llama", tmp_path_factory.mktemp("model"), initializer_range=0.02)
    return pyttc.Engine.from_pretrained(folder, memory="64MiB")


def length(paths):
    return -np.abs(paths.new_lengths - 12.0)


def half(paths):
    return 1 / (2.0 + paths.path_ids % 5)


def first_letter(text):
    return text[:1] or None


STRATEGIES = {
    "sample_n": search.SampleN(n=8),
    "best_of_n": search.BestOfN(n=8),
    "majority": search.Majority(first_letter, n=8),
    "weighted": search.Majority(first_letter, n=8, score=half),
    "asc": search.AdaptiveConsistency(first_letter, n=8, wave=2),
    "esc": search.EarlyStopping(first_letter, n=8, wave=2),
    "beam": search.Beam(half, width=8, expand=4),
    "lookahead": search.Beam(half, width=4, expand=2, lookahead=1),
    "dvts": search.DVTS(half, width=8, expand=4),
    "rebase": search.Rebase(half, width=8),
    "particles": search.ParticleFilter(half, n=8),
    "revision": search.Revision(lambda prompt, text: " again" * 8, n=2, rounds=2),
    "forcing": search.BudgetForcing(min_tokens=20, n=2, times=2),
}
OPTIONS = {"delimiter": "e", "max_new_tokens": 24}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_obeys_its_budget_and_repeats_itself(engine, name):
    free = engine.free_pages
    for tokens in (0, 37, 60, 10_000):
        runs = [
            search.solve(
                engine, PROMPTS, STRATEGIES[name], search.Budget(tokens=tokens), seed=3, **OPTIONS
            )
            for _ in range(2)
        ]
        for result in runs[0]:
            assert result.tokens <= tokens
            written = sum(len(node.tokens) for node in result.tree.nodes)
            assert written <= result.tokens + 1  # one end of text may have been taken back
        texts = [[node.text for node in run[0].tree.nodes] for run in runs]
        assert texts[0] == texts[1] and (texts[0] or not tokens)
        assert [r.answer for r in runs[0]] == [r.answer for r in runs[1]]
    del runs
    assert engine.free_pages == free  # nothing leaks


def test_a_verified_path_ends_its_prompt_and_is_the_answer(engine):
    asked = []

    def verify(prompt, text):
        asked.append((prompt, text))
        return prompt == PROMPTS[0]

    results = search.solve(engine, PROMPTS, search.SampleN(64), verify=verify, max_new_tokens=400)
    assert results[0].verified and not results[1].verified
    tree = results[0].tree
    ends = {node.end for node in tree.nodes if node.prompt == 0}
    assert "solved" in ends and (PROMPTS[0], results[0].answer) in asked
    assert "solved" not in {node.end for node in tree.nodes if node.prompt == 1}


def test_more_paths_contain_the_fewer(engine):
    def texts(n):
        result = search.solve(engine, PROMPTS[0], search.SampleN(n), seed=5, max_new_tokens=16)
        return {node.path: node.text for node in result.tree.nodes}

    few, many = texts(4), texts(16)
    assert few == {path: many[path] for path in few}


def test_a_tool_writes_into_paths(engine):
    replies = []

    def reply(prompt, text):
        replies.append(text)
        return "!!e" if len(replies) % 3 else None

    result = search.solve(
        engine, PROMPTS[0], search.SampleN(64), tool=search.Tool("a", reply), **OPTIONS
    )
    assert replies and all(text.endswith("a") for text in replies)
    assert any("!!e" in node.text for node in result.tree.nodes)
    assert "tool" in {node.end for node in result.tree.nodes}


def test_stream_gives_the_best_so_far(engine):
    seen = list(search.stream(engine, PROMPTS, STRATEGIES["beam"], **OPTIONS))
    assert len(seen) > 2
    tokens = [results[0].tokens for results in seen]
    assert tokens == sorted(tokens)


def test_a_tree_is_saved_and_loaded(engine, tmp_path):
    result = search.solve(engine, PROMPTS, STRATEGIES["beam"], **OPTIONS)
    result[0].tree.save(tmp_path / "run.json")
    assert search.SearchTree.load(tmp_path / "run.json") == result[0].tree


def test_a_budget_is_checked():
    with pytest.raises(ValueError, match="tokens: got -1"):
        search.Budget(tokens=-1)
    with pytest.raises(ValueError, match="dollars_per_hour"):
        search.Budget(dollars=1)
    assert search.Budget(dollars=1, dollars_per_hour=3600).deadline == 1
    assert search.Budget(tokens=np.int64(7)).tokens == 7
    for name in ("tokens", "seconds", "flops", "dollars", "dollars_per_hour"):
        for wrong in (True, "5", [5], -1, math.nan, math.inf, *([10.5, 7.0] * (name == "tokens"))):
            with pytest.raises((TypeError, ValueError), match=f"^{name}: got .* number >= 0"):
                search.Budget(**{name: wrong})


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "5", [5]])
def test_a_limit_of_no_tokens_is_refused(engine, wrong):
    with pytest.raises((TypeError, ValueError), match="^max_new_tokens: got"):
        search.solve(engine, PROMPTS, search.SampleN(2), max_new_tokens=wrong)


def test_a_strategy_may_yield_nothing(engine):
    """A bare yield is a step like any other."""

    class Bare:
        def run(self, run):
            for paths in run.finish(run.fork(run.root, 2)):
                run.rank(paths, np.zeros(2))
                yield

    class Given(Bare):
        def run(self, run):
            yield from (run.root for _ in super().run(run))

    steps = [list(search.stream(engine, PROMPTS[0], kind(), **OPTIONS)) for kind in (Bare, Given)]
    assert len(steps[0]) == len(steps[1]) > 2
    assert steps[0][-1][0].tokens == steps[1][-1][0].tokens


@pytest.fixture
def no_eos(engine, monkeypatch):
    monkeypatch.setattr(engine, "eos", [])
    return engine


@pytest.mark.parametrize("until", ["e", ["e", "t"]])
@pytest.mark.parametrize(
    "name", ["sample_n", "majority", "beam", "rebase", "particles", "revision"]
)
def test_until_ends_a_path_as_the_model_would(no_eos, name, until):
    """A model without an end of text: what its paths write is verified and answers."""
    asked = []

    def verify(prompt, text):
        asked.append(text)
        return len(asked) == 5

    options = {"until": until, "delimiter": "h", "max_new_tokens": 400, "verify": verify}
    *_, results = search.stream(no_eos, PROMPTS, STRATEGIES[name], **options)
    tree = results[0].tree
    assert len(asked) >= 5 and sum(result.verified for result in results) == 1
    assert all(any(stop in text for stop in until) for text in asked)
    for index, node in enumerate(tree.nodes):
        if node.end == "eos":
            assert any(stop in tree.text(index) for stop in until)
            assert node.verified is not None or results[node.prompt].verified
    assert all(result.finished for result in results if result.answer is not None)


def test_until_counts_for_curves_and_journals(no_eos, tmp_path):
    makers = {"sample": search.SampleN, "best": lambda n: search.BestOfN(n, half)}
    options = {"until": "e", "max_new_tokens": 100, "journal": tmp_path / "curve"}
    points = list(
        search.curve(no_eos, PROMPTS, makers, verify=lambda p, t: "e" in t, sizes=(1, 4), **options)
    )
    assert [point.solved[0] for point in points] == [1.0] * 4 == [p.chosen[0] for p in points]
    options = {"max_new_tokens": 100, "journal": tmp_path / "run"}
    search.solve(no_eos, PROMPTS, search.SampleN(2), until="e", **options)
    with pytest.raises(ValueError, match='until is "e" there and "t" here'):
        search.solve(no_eos, PROMPTS, search.SampleN(2), until="t", **options)
    for wrong in ("", 1.5, [""], -1, [None]):
        with pytest.raises((TypeError, ValueError), match="^until: got"):
            search.solve(no_eos, PROMPTS, search.SampleN(2), until=wrong)


def test_where_no_path_finished_one_that_was_cut_is_the_answer(no_eos):
    ends = []
    for until in (None, "e"):
        result = search.solve(
            no_eos, PROMPTS[0], STRATEGIES["best_of_n"], until=until, max_new_tokens=9
        )
        ends.append(result.tree.nodes[result.best].end)
        assert result.finished == (ends[-1] == "eos") and result.answer == result.tree.text(
            result.best
        )
    assert ends == ["length", "eos"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"budget": 100}, "budget: got 100, expected a pyttc.Budget"),
        ({"budget": {"tokens": 5}}, "budget: got {'tokens': 5}, expected a pyttc.Budget"),
        ({"tool": 3}, "tool: got 3, expected a search.Tool"),
        ({"tool": search.Tool("", len)}, "tool.until: got an empty string"),
        ({"strategy": None}, "strategy: got None, expected a strategy, such as"),
        ({"strategy": "beam"}, "strategy: got 'beam', expected a strategy"),
        ({"strategy": search.SampleN}, "strategy: got <class .*, expected a strategy"),
        ({"prompts": [1, 2, 3]}, r"prompts: got \[1, 2, 3\], expected a text or several"),
        ({"prompts": None}, "prompts: got None, expected a text or several"),
        ({"prompts": []}, "prompts: got none"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 1.5}, "seed: got 1.5"),
        ({"temprature": 1.0}, "temprature: no option of a search; .* temperature, top_k"),
        ({"temperature": -1.0}, "temperature: got"),
        ({"temperature": "hot"}, "temperature: got 'hot'"),
        ({"top_p": math.nan}, "top_p: got"),
        ({"confidence": -1}, "confidence: got -1"),
        ({"verify": 3}, "verify: got 3, expected a function"),
        ({"on_step": 3}, "on_step: got 3, expected a function"),
        ({"delimiter": 3}, "delimiter: got 3, expected a text"),
        ({"delimiter": ""}, "delimiter: got '', expected a text"),
        ({"engine": "gpt2"}, "engine: got 'gpt2', expected a pyttc.Engine"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_runs(engine, monkeypatch, change, said):
    given = {"engine": engine, "prompts": PROMPTS, "strategy": search.SampleN(2), **change}
    monkeypatch.setattr(engine, "prefill", None)
    with pytest.raises((TypeError, ValueError), match=f"^{said}"):
        search.solve(**given)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"sizes": 4}, "sizes: got 4, expected rising"),
        ({"sizes": (1, 2.5)}, "sizes: got 2.5"),
        ({"sizes": (0, 1)}, "sizes: got 0"),
        ({"sizes": ()}, r"sizes: got \[\], expected rising"),
        ({"strategies": [search.SampleN]}, "strategies: got .*, expected names and functions"),
        ({"strategies": search.SampleN(4)}, "strategies: got .*, expected names and functions"),
        (
            {"strategies": {"a": search.SampleN(4)}},
            r"strategies\['a'\]: got .*, expected a function",
        ),
        ({"strategies": {"a": lambda n: n}}, r"strategies\['a'\]\(1\): got 1, expected a strategy"),
        ({"problems": [1]}, r"problems: got \[1\], expected a text or several"),
        ({"problems": []}, "problems: got none"),
        ({"verify": None}, "verify: got None, expected a function"),
        ({"rows": 0}, "rows: got 0"),
        ({"seconds": "1"}, "seconds: got '1'"),
        ({"temprature": 1.0}, "temprature: no option"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
    ],
)
def test_a_wrong_argument_of_a_curve_is_named_before_anything_runs(
    engine, monkeypatch, tmp_path, change, said
):
    monkeypatch.setattr(engine, "prefill", None)
    given = {
        "problems": PROMPTS,
        "strategies": {"a": search.SampleN},
        "verify": len,
        "sizes": (1, 2),
    }
    with pytest.raises((TypeError, ValueError), match=f"^{said}"):
        list(search.curve(engine, **{**given, "journal": tmp_path / "x", **change}))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("given", [True, 1, 1.0, np.True_, np.float32(1), torch.tensor(True)])
def test_verdicts_are_bools_or_one_and_zero(given):
    pairs = [("a", "b")]
    assert verdicts(lambda p, t: given, pairs) == [True]
    assert verdicts(lambda p, t: given * 0, pairs) == [False] == verdicts(lambda p, t: None, pairs)
    for wrong in (math.nan, "no", "", 0.5, -1, 2, [], torch.ones(2), re.match("a", "a")):
        with pytest.raises(ValueError, match="^verify: gave .* for 'b', expected True or False"):
            verdicts(lambda p, t, wrong=wrong: wrong, pairs)


def test_a_strategy_without_steps_and_a_misspelt_step_are_named(engine):
    class Silent:
        def run(self, run):
            run.finish(run.root)

    class Misspelt:
        def run(self, run):
            yield run.step(run.fork(run.root, 2), temprature=0.0)

    with pytest.raises(TypeError, match=r"^Silent.run: got None, expected"):
        search.solve(engine, PROMPTS, Silent())
    with pytest.raises(TypeError, match="^temprature: no option"):
        search.solve(engine, PROMPTS, Misspelt())


def a_run(engine, budget, **options):
    given = {"verify": None, "tool": None, "delimiter": None, "max_new_tokens": 50, "seed": 0}
    given |= {"stop_when_verified": True, "sampling": {}, **options}
    return search.Run(engine, PROMPTS[:1], budget, **given)


@pytest.mark.parametrize("limit", ["tokens", "flops"])
def test_what_no_token_fits_ends_the_run(engine, limit):
    """Whatever is left of a limit, be it less than a token."""
    run = a_run(engine, search.Budget(tokens=20, flops=1e12))
    paths = run.fork(run.root, 2)
    if limit == "tokens":
        run.meter.tokens += 0.5  # what a budget of whole numbers does not come to
        run.meter.tokens += 19
    else:
        run.meter.flops = run.meter.budget.flops - 1
    assert len(list(run.finish(paths))) <= 1 and run.stopped == limit and not run.open(paths).any()


def test_a_step_may_leave_paths_where_they_are(engine):
    run = a_run(engine, search.Budget())
    paths = run.step(run.fork(run.root, 3), max_new_tokens=[0, 2, 5])
    assert paths.new_lengths.tolist() == [0, 2, 5]
    assert len(list(run.finish(paths, max_new_tokens=0))) == 1  # and not for ever
    for wrong in ([1, 2], -1, 1.5):
        with pytest.raises((TypeError, ValueError), match="^max_new_tokens: got"):
            run.step(paths, max_new_tokens=wrong)
    assert paths.new_lengths.tolist() == [0, 2, 5]


def test_pass_at_k_is_the_mean_over_subsets():
    assert pass_at_k([2], [4], 2)[0] == pytest.approx(1 - 1 / 6)
    assert pass_at_k([0, 4], [4, 4], 3).tolist() == [0, 1]
    with pytest.raises(ValueError, match="k: got 5"):
        pass_at_k([1], [4], 5)
    mean, low, high = bootstrap_interval([0, 1] * 50)
    assert mean == 0.5 and 0.35 < low < 0.45 < 0.55 < high < 0.65


def test_small_parts():
    assert shares(np.array([1.0, 1.0, 2.0]), 8).tolist() == [2, 2, 4]
    assert shares(np.array([1.0, 1.0, 1.0]), 4).tolist() == [2, 1, 1]
    assert systematic(np.array([0.5, 0.0, 0.5, 0.0]), 0.5).tolist() == [0, 0, 2, 2]
    assert leader_holds(0, 0) == 0.5 and leader_holds(9, 0) > 0.99


def test_appended_text_obeys_the_budget(engine):
    run = a_run(engine, search.Budget(tokens=5))
    paths = run.fork(run.root, 2)
    run.append(paths, ["!", "!" * 40])
    assert paths.text() == ["!", ""] and run.meter.tokens == 1


def test_a_search_shares_prefixes_with_those_of_its_salt_only(engine):
    prompt = "one two three " * 8
    held = engine.prefill(prompt, salt="a")
    found = {
        salt: search.solve(engine, prompt, search.SampleN(n=4), salt=salt, max_new_tokens=5)
        for salt in ("a", "b", "", None)
    }
    prefilled = {salt: result.cost.ran.prefilled for salt, result in found.items()}
    assert prefilled["a"] < prefilled["b"] == prefilled[""] == prefilled[None] == held.lengths[0]
    assert len({result.answer for result in found.values()}) == 1
