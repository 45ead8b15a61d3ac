"""pyttc solve, show and curve: what they print, write and refuse."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import pyttc
from pyttc import cli, search
from pyttc.commands import curve as curve_command
from pyttc.search.html import page
from pyttc.search.names import Means, named
from pyttc.search.saved import FORMAT
from pyttc.search.tree import Node, SearchTree
from pyttc.tasks import countdown_search, model_names
from pyttc.tasks.countdown_text import prompt

from .countdown_models import PROBLEMS, teach

PUZZLE = ["8,4,2", "16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(teach(tmp_path_factory.mktemp("taught")))


def ran(capsys, *arguments):
    code = cli.main(list(arguments))
    return code, capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and error.startswith("pyttc: ")
    return error


def test_solve_prints_a_table(capsys, model):
    code, said = ran(capsys, "solve", *PUZZLE, "--model", model)
    assert code == 0
    assert re.search(r"^puzzle +answer +verified +paths +tokens +seconds$", said, re.M)
    assert re.search(r"^8,4,2>16 +\S+=\d+, \S+=16 +yes ", said, re.M)
    assert "1 of 1 solved, each answer checked exactly" in said and "64 random tries" in said


def test_solve_as_json(capsys, model):
    arguments = ["--model", model, "--json", "--strategy", "beam", "--n", "32", "--seed", "3"]
    code, said = ran(capsys, "solve", *PUZZLE, *arguments)
    report = json.loads(said, parse_constant=lambda name: pytest.fail(name))
    (row,) = report["rows"]
    assert code == 0 and report["strategy"] == "beam" and report["solved"] == int(row["verified"])
    assert row["tokens"] == report["tokens"] and row["puzzle"] == "8,4,2>16" and row["solvable"]
    assert (
        json.loads(ran(capsys, "solve", *PUZZLE, *arguments)[1])["rows"][0]["text"] == row["text"]
    )


def test_solve_takes_test_puzzles(capsys, model):
    code, said = ran(capsys, "solve", "--model", model, "--puzzles", "3", "--n", "2", "--size", "3")
    assert code == 0 and "0 of 3" in said.replace("1 of 3", "0 of 3").replace("2 of 3", "0 of 3")


def test_solve_says_what_has_no_solution(capsys, model):
    said = ran(capsys, "solve", "2,4", "99", "--model", model, "--n", "2")[1]
    assert "2,4>99 has no solution" in said


def test_solve_continues_any_prompt(capsys, model):
    arguments = ["--model", model, "--prompt", "8,4,2>16:", "--n", "4", "--max-tokens", "9"]
    code, said = ran(capsys, "solve", *arguments)
    assert code == 0 and said.startswith("prompt")
    assert "the tokenizer cannot read 'hello'" in refused(
        capsys, "solve", "--model", model, "--prompt", "hello"
    )


def test_a_prompt_that_nothing_ends_says_what_does(capsys, model):
    arguments = ["solve", "--model", model, "--prompt", "8,4,2>16:", "--n", "8"]
    said = ran(capsys, *arguments, "--max-tokens", "2", "--temperature", "0")[1]
    assert "1 of 1: no path came to its end" in said and "--until" in said
    until = ["--until", "=", "--until", r"\n", "--json"]
    (row,) = json.loads(ran(capsys, *arguments, *until)[1])["rows"]
    assert row["finished"] and row["answer"].endswith("=")
    assert "--until" not in ran(capsys, *arguments, "--until", r"\x3d")[1]


@pytest.mark.parametrize(
    "arguments, named_in",
    [
        (["solve", "8,x", "3"], "numbers: got '8,x'"),
        (["solve", "8"], "numbers: got '8'"),
        (["solve", "8,9"], "target"),
        (["solve", "8,9", "-1"], "-1"),
        (["solve", "1,2,3,4,5,6,7,8,9", "3"], "2 to 8"),
        (["solve", "9" * 99 + ",2", "3"], "numbers"),
        (["solve", "8,9", "17", "--n", "0"], "--n: got '0'"),
        (["solve", "8,9", "17", "--seconds", "nan"], "--seconds"),
        (["solve", "8,9", "17", "--dollars", "1"], "dollars_per_hour"),
        (["solve", "8,9", "17", "--model", "/nowhere"], "/nowhere"),
        (["solve", "8,9", "17", "--save", "/nowhere/run.json"], "--save"),
        (["solve", "8,9", "17", "--prompt", "x"], "--prompt"),
        (["solve", "8,9", "17", "--until", ""], "--until: got an empty text"),
        (["solve", "8,9", "17", "--until", "a\\"], "--until: got"),
        (["show", "/nowhere.json"], "/nowhere.json"),
        (["curve", "--strategies", "thinking"], "thinking"),
        (["curve", "--sizes", "4,1"], "--sizes"),
        (["curve", "--model", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_ends_in_one_line(capsys, arguments, named_in):
    assert named_in in refused(capsys, *arguments)


def test_an_unknown_strategy_is_named_with_its_kin(capsys, model):
    error = refused(capsys, "solve", *PUZZLE, "--model", model, "--strategy", "thinking")
    assert "'thinking'" in error and "particle-filter" in error


@pytest.mark.skipif(bool(model_names()), reason="models come with this checkout")
def test_no_model_is_one_line(capsys):
    assert "--model" in refused(capsys, "solve")


def test_an_interrupt_prints_the_best_so_far(capsys, model, monkeypatch, tmp_path):
    watch = search.Run._watch

    def press(run, paths, running):
        if run.meter.seconds > 0 and run.cost.ran.decoded > 500:
            raise KeyboardInterrupt
        return watch(run, paths, running)

    monkeypatch.setattr(search.Run, "_watch", press)
    saved = tmp_path / "run.json"
    arguments = ["--model", model, "--n", "256", "--save", str(saved), "--temperature", "2"]
    code, said = ran(capsys, "solve", "9,6,3", "100", *arguments)
    assert code == 130 and "stopped: interrupted; these are the best so far" in said
    tree = SearchTree.load(saved)
    tokens = int(re.search(r"paths each: ([\d,]+) tokens", said)[1].replace(",", ""))
    assert sum(len(node.tokens) for node in tree.nodes) == tokens > 500


def test_show_prints_and_writes_a_page(capsys, model, tmp_path):
    saved = tmp_path / "run.json"
    ran(capsys, "solve", *PUZZLE, "--model", model, "--n", "16", "--save", str(saved))
    code, said = ran(capsys, "show", str(saved), "--steps", "5")
    assert code == 0 and "8,4,2>16:" in said and "<- answer" in said and "more steps" in said
    text = (tmp_path / "run.html").read_text()
    assert "8,4,2&gt;16:" in text and "verified" in text
    assert text.count("<details") == text.count("</details>") > 8
    assert "K-th" not in refused(capsys, "show", str(saved), "--prompt", "2")


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>\x1b[31m[bold]&lt;"


def hostile_tree():
    nodes = [Node(-1, 0, 0, HOSTILE, [1], -1.0, end=HOSTILE)]
    return SearchTree([HOSTILE], nodes, [0], {HOSTILE: HOSTILE})


def test_what_models_write_is_inert_in_a_page():
    text = page(hostile_tree())
    inside = text[text.index("<body>") :]
    tags = set(re.findall(r"<(/?[a-z0-9]+)", inside))
    assert tags <= {f"{end}{tag}" for end in ("", "/") for tag in ("body", "h1", "html", "p")} | {
        f"{end}{tag}" for end in ("", "/") for tag in ("details", "summary", "b", "i")
    }
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")
    assert inside.count("&lt;script&gt;") >= 4


def test_what_models_write_is_inert_on_a_terminal(capsys, tmp_path):
    hostile_tree().save(tmp_path / "run.json")
    said = ran(capsys, "show", str(tmp_path / "run.json"))[1]
    assert "\x1b" not in said and "[bold]" in said


def test_deep_and_wide_trees_are_shown(capsys, tmp_path):
    nodes = [Node(i - 1, 0, 0, "x", [1], 0.0) for i in range(30_000)]
    tree = SearchTree(["a", "b"], nodes, [29_999, -1], {})
    text = page(tree)
    assert text.count("<details") == text.count("</details>") and "Only the first" in text
    tree.save(tmp_path / "run.json")
    assert ran(capsys, "show", str(tmp_path / "run.json"), "--steps", "40")[0] == 0


def test_a_saved_tree_is_the_same_tree(tmp_path):
    tree = SearchTree(
        ["a\n", "\u2603"],
        [
            Node(-1, 0, 0, "x\ud83d", [1, 2], -np.inf),
            Node(0, 0, 5, "", [], 0.0, -np.inf, "eos", True),
        ],
        [1, -1],
        {"model": "m"},
    )
    tree.save(tmp_path / "run.json")
    assert SearchTree.load(tmp_path / "run.json") == tree
    json.loads((tmp_path / "run.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_foreign_and_damaged_files_are_refused(capsys, tmp_path):
    path = tmp_path / "run.json"
    SearchTree(["a"], [Node(-1, 0, 0, "x", [1, 2], -1.0)], [0], {}).save(path)
    good = json.loads(path.read_text())
    SearchTree.load(path)

    def with_node(**changes):
        return {**good, "nodes": [{**good["nodes"][0], **changes}]}

    bad = ["", "[", "[]", "{}", "[" * 100_000, '{"format": "x"}', "\x00"]
    bad += [json.dumps({**good, "version": 1}), json.dumps({**good, "nodes": []})]
    bad += [json.dumps({**good, key: 5}) for key in ("nodes", "prompts", "best", "about")]
    bad += [json.dumps({"format": FORMAT, "version": 2}), json.dumps({**good, "best": [1]})]
    bad += [json.dumps(with_node(**change)) for change in (
        {"parent": 0}, {"parent": -2}, {"parent": "0"}, {"prompt": 1}, {"prompt": -1}, {"path": 0.5},
        {"text": 5}, {"end": None}, {"score": "1"}, {"logprob": None}, {"verified": "yes"}, {"more": 1},
        {"tokens": None}, {"tokens": [-1]}, {"tokens": [1 << 31]}, {"tokens": [1.0]}, {"tokens": "12"},
    )]  # fmt: skip
    for text in bad:
        path.write_text(text)
        with pytest.raises(ValueError, match=r"run\.json"):
            SearchTree.load(path)
        refused(capsys, "show", str(path))


def test_curve_measures_writes_and_goes_on(capsys, model, tmp_path):
    out = tmp_path / "curve.json"
    arguments = ["curve", "--model", model, "--problems", "3", "--size", "3", "--out", str(out)]
    arguments += ["--dollars-per-hour", "2"]
    code, said = ran(capsys, *arguments, "--strategies", "sample-n,beam", "--sizes", "1,2,4")
    assert code == 0 and (tmp_path / "curve.svg").read_text().lstrip().startswith("<?xml")
    found = curve_command.read(out)
    keys = [(p["strategy"], p["n"]) for p in found["points"]]
    assert keys == [("greedy", 1)] + [(s, n) for s in ("sample-n", "beam") for n in (1, 2, 4)]
    for point in found["points"]:
        assert point["dollars"] == pytest.approx(point["seconds"] * 2 / 3600)
        assert point["solved"][1] <= point["solved"][0] <= point["solved"][2]
    assert set(found["random"]) == {"1", "2", "4"}
    said = ran(capsys, *arguments, "--strategies", "beam,majority", "--sizes", "1,2,4")[1]
    assert "majority" in said and "beam" not in said  # what is there is not measured again
    assert "seed is 0 there and 1 here" in refused(capsys, *arguments, "--seed", "1")
    whole = out.read_bytes()
    out.unlink()
    assert "beam" not in ran(capsys, *arguments, "--strategies", "beam", "--sizes", "1,2,4")[1]
    assert out.read_bytes() == whole  # the journal has it all
    journal = tmp_path / "curve.journal"
    lines = journal.read_bytes().splitlines(True)
    journal.write_bytes(b"".join([*lines[:2], b"x", *lines[2:]]))
    assert "curve.journal, line 3: damaged" in refused(capsys, *arguments)
    journal.unlink()
    assert "name another file" in refused(capsys, *arguments)
    out.write_text('{"format": "pyttc curve", "version": 1, "points": [{}]}')
    with pytest.raises(ValueError, match="damaged"):
        curve_command.read(out)


def test_curve_stops_in_time_and_keeps_what_it_has(capsys, model, tmp_path):
    out = tmp_path / "curve.json"
    arguments = [
        "curve",
        "--model",
        model,
        "--problems",
        "40",
        "--out",
        str(out),
        "--seconds",
        "0.7",
    ]
    code, said = ran(
        capsys, *arguments, "--strategies", "sample-n,beam,dvts,rebase", "--sizes", "64"
    )
    assert code == 0 and "time is up" in said


def test_a_curve_is_nested(model):
    engine = pyttc.Engine.from_pretrained(model)
    prompts = [prompt(problem) for problem in PROBLEMS]
    options = {"seed": 5, **countdown_search.options()}
    means = Means(None, countdown_search.claimed_number)
    makers = {
        name: lambda n, name=name: named(name, n, means) for name in ("best-of-n", "majority")
    }
    points = list(pyttc.curve(engine, prompts, makers, sizes=(1, 8, 32), rows=40, **options))
    assert [(p.strategy, p.n) for p in points] == [(s, n) for s in makers for n in (1, 8, 32)]
    options["stop_when_verified"] = False
    for point in points[2::3]:  # the whole run: as if it were run alone
        found = pyttc.solve(engine, prompts, named(point.strategy, 32, means), **options)
        assert point.tokens == found[0].tokens / 2 and point.problems == 2
        assert point.chosen[0] == np.mean([bool(result.verified) for result in found])
    first = pyttc.solve(engine, prompts, search.SampleN(8), **options)[0]
    assert points[1].tokens == first.tokens / 2
    assert points[0].solved[0] == points[0].chosen[0] <= points[1].solved[0] <= points[2].solved[0]
    with pytest.raises(ValueError, match="sizes"):
        next(pyttc.curve(engine, prompts, makers, sizes=(4, 1), **options))


class Helped(search.SampleN):
    """A strategy of one's own with a run of its own, whatever its other methods are called."""

    def run(self, run):
        paths = run.fork(run.root, self.n)
        yield from run.finish(run.select(paths, self.keep(run, paths)))

    def keep(self, run, paths):
        return [rows[0] for _, rows in run.groups(paths)]


class Picking:
    def __init__(self, n):
        self.n = n

    def run(self, run):
        yield from run.finish(run.fork(run.root, self.pick([3, 1, 2], 1)[0]))

    def pick(self, scores, k):
        return sorted(scores)[:k]


class Choosing(search.SampleN):
    def pick(self, tree, nodes):
        return nodes[-1]


def test_a_curve_runs_the_run_of_a_strategy_that_is_not_independent(model):
    engine = pyttc.Engine.from_pretrained(model)
    options = {"seed": 5, **countdown_search.options()}
    prompts = [prompt(PROBLEMS[0])]
    makers = {kind.__name__: kind for kind in (Helped, Picking, Choosing, search.SampleN)}
    points = list(pyttc.curve(engine, prompts, makers, sizes=(1, 8), **options))
    tokens = {(point.strategy, point.n): point.tokens for point in points}
    assert (
        tokens["Helped", 8] == tokens["Helped", 1] == tokens["Picking", 8] == tokens["SampleN", 1]
    )
    assert tokens["Choosing", 8] == tokens["SampleN", 8] > tokens["SampleN", 1]


def test_help_is_quick_and_needs_no_engine():
    code = "import sys; from pyttc import cli\ntry: cli.main(['solve', '--help'])\nexcept SystemExit: pass\n"
    code += "assert 'transformers' not in sys.modules and 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "--strategy" in done.stdout, done.stderr
