"""The Countdown task: exact rules, hostile text, splits, labels, the baseline, the checkpoint
format."""

import json
import math
import random
from itertools import islice, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttc.tasks import countdown_data
from pyttc.tasks.countdown import (
    Problem,
    Step,
    after,
    apply,
    can_reach,
    can_reach_with_fractions,
    count_solutions,
    game_of_24,
    generate,
    is_legal,
    moves,
    parse_number,
    parse_step,
    random_rollouts,
    solve,
)
from pyttc.tasks.countdown import (
    test_set as fixed_problems,
)
from pyttc.tasks.countdown_text import (
    EOS,
    VOCABULARY,
    calculate,
    example_lines,
    parse_problem,
    problem_of,
    prompt,
    solution_text,
    steps_legal,
    verify,
)

from .common import EXAMPLES

small_problems = st.builds(
    Problem,
    st.lists(st.integers(1, 99), min_size=1, max_size=4).map(tuple),
    st.integers(0, 120),
)
fuzz = settings(max_examples=EXAMPLES, derandomize=True)


def brute_force(numbers, target):
    """Every ordered pair, every operation, results of any sign or denominator refused
    afterwards."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, j in product(range(len(numbers)), repeat=2):
        if i == j:
            continue
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        a, b = numbers[i], numbers[j]
        results = [a + b, a * b] + [a - b] * (a >= b)
        if b and not a % b:
            results.append(a // b)
        if any(brute_force([*rest, r], target) for r in results):
            return True
    return False


@fuzz
@given(small_problems)
def test_solver_agrees_with_brute_force(problem):
    expected = brute_force(list(problem.numbers), problem.target)
    assert can_reach(problem.numbers, problem.target) == expected
    assert (count_solutions(problem.numbers, problem.target) > 0) == expected
    assert (solve(problem) is not None) == expected


@fuzz
@given(small_problems, st.booleans(), st.integers(0, 3))
def test_solutions_verify_in_both_formats(problem, direct, seed):
    steps = solve(problem, random.Random(seed))
    if steps is None:
        return
    text = solution_text(problem, steps, direct=direct)
    assert verify(prompt(problem), text)
    assert verify("1,2>3:1+2=3;\n" + prompt(problem), text)
    assert steps_legal(prompt(problem), text) == [True] * (len(problem.numbers) - 1)
    assert not verify(prompt(Problem(problem.numbers, problem.target + 1)), text)


def test_false_texts_are_refused():
    line = "23,45,67,12>55:"
    good = "45-23=22;67-12=55;55+22=77;"
    assert verify("23,45,67,12>77:", good)
    for bad in [
        good,
        "",
        "\n",
        "55;",
        "67-12=55;",  # numbers left over
        "45-23=22;67-12=55;22*0=0;55+0=55;",  # a number from nowhere
        "67-12=55;55+45=100;100-23=55;",  # arithmetic
        "45+45=90;",  # one number twice
        "12-67=-55;",
    ]:
        assert not verify(line, bad), bad
    ok = "3,2>6:", "3*2=6|6;\n"
    assert verify(*ok)
    for bad in [
        "3*2=6|6;\n\n",
        "3*2=6|6;x",
        "3*2=6|5;",
        "3*2=6|6,;",
        "3*2=6|",
        "3*2=6",
        " 3*2=6;",
        "3*2=06;",
        "3*2=+6;",
        "3*2=6;6=6;",
        "3*2==6;",
        "3**2=6;",
        "٣*2=6;",
        "3*2=６;",
        "3*2=6;\x00",
        "3*2=6;;",
    ]:
        assert not verify("3,2>6:", bad), bad
    for bad in ["3,2>6", "3,2:", ">6:", "3,,2>6:", "3,2>6:\n", "03,2>6:", "3,2>6>6:", ""]:
        assert not verify(bad, ok[1]), bad


def test_huge_numbers_are_refused_before_they_are_read():
    assert parse_number("9" * 12) == 10**12 - 1
    assert parse_number("9" * 13) is None
    assert parse_step("1" * 10_000 + "+1=2") is None
    assert not verify("3,2>6:", "3*2=6;" + "1" * 100_000)
    assert parse_problem(",".join(["1"] * 9) + ">1") is None


@fuzz
@given(st.text(alphabet="0123456789+-*/=,;:>|\n x", max_size=40), st.booleans())
def test_verifier_survives_any_text(text, as_prompt):
    if as_prompt:
        verify(text, "3*2=6;")
        problem_of(text)
    else:
        assert not verify("3,2>7:", text)  # cannot be made
        steps_legal("3,2>7:", text)
        calculate(Problem((3, 2), 7), text)


@fuzz
@given(small_problems, st.integers(0, 10**6))
def test_calculator_writes_what_the_verifier_expects(problem, seed):
    draw, text, numbers = random.Random(seed), "", problem.numbers
    while len(numbers) > 1:
        step, rest = draw.choice(moves(numbers))
        head = f"{step.left}{step.op}{step.right}="
        tail = calculate(problem, text + head)
        assert tail == f"{step.result}|{','.join(map(str, rest))};"
        assert is_legal(numbers, step) and after(numbers, step) == rest
        text, numbers = text + head + tail, rest
    assert verify(prompt(problem), text + EOS) == (numbers == (problem.target,))


def test_calculator_refuses():
    problem = Problem((23, 45, 67, 12), 55)
    assert calculate(problem, "45-23=") == "22|22,67,12;"
    assert calculate(problem, "45-23=22|22,67,12;67-12=") == "55|55,22;"
    for bad in ["23-45=", "45/23=", "45-22=", "45-23", "=", "45-23=23|23,67,12;67-12=", "1;45-23="]:
        assert calculate(problem, bad) is None, bad


def test_operations():
    assert [apply(7, op, 0) for op in "+-*/"] == [7, 7, 0, None]
    assert [apply(6, op, 4) for op in "+-*/%"] == [10, 2, 24, None, None]
    assert apply(4, "-", 6) is None
    assert parse_step("45-23=21") == Step(45, "-", 23, 21)


def test_game_of_24_counts():
    hands = game_of_24()
    assert len(hands) == 1346
    whole = {problem.numbers for problem in hands}
    every = [h for h in product(range(1, 14), repeat=4) if list(h) == sorted(h)]
    assert len(every) == 1820
    fractions = [h for h in every if h in whole or can_reach_with_fractions(h, 24)]
    assert len(fractions) == 1362
    assert (3, 3, 8, 8) not in whole and (3, 3, 8, 8) in fractions


def test_splits_are_disjoint_and_stable():
    test, train = (generate(60, 3, seed=5, test=flag) for flag in (True, False))
    assert all(p.is_test for p in test) and not any(p.is_test for p in train)
    assert all(Problem(p.numbers[::-1], p.target).is_test for p in test)
    assert fixed_problems(4, 3) == fixed_problems(4, 5)[:3]
    assert [str(p) for p in fixed_problems(3, 2) + fixed_problems(4, 2)] == FIXED
    for problem in test + train:
        assert can_reach(problem.numbers, problem.target)
        assert all(1 <= n <= 99 for n in problem.numbers) and 10 <= problem.target <= 100


FIXED = ["33,87,12>42", "66,75,68>73", "43,33,29,40>46", "10,15,5,97>50"]


def test_random_baseline_is_as_strong_as_reported():
    tries, hits = 512, []
    for problem in fixed_problems(4, 200):
        hits.append(sum(islice(random_rollouts(problem, seed=0), tries)))

    def pass_at(k):
        misses = [math.comb(tries - h, k) / math.comb(tries, k) for h in hits]
        return 100 * (1 - sum(misses) / len(hits))

    assert pass_at(1) == pytest.approx(1.5, abs=0.4)
    assert pass_at(16) == pytest.approx(19, abs=3.5)
    assert pass_at(64) == pytest.approx(44, abs=6)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_bulk_enumeration_agrees_with_the_solver(size):
    numbers = np.random.default_rng(size).integers(1, 30, (20, size))
    for row, ends in zip(numbers, countdown_data.leaves(numbers), strict=True):
        values, counts = np.unique(ends[ends >= 0], return_counts=True)
        for target, count in zip(values[::3].tolist(), counts[::3].tolist(), strict=True):
            assert count_solutions(row.tolist(), target) == count


def test_training_lines_carry_exact_distributions_and_labels():
    examples = countdown_data.build(60, seed=3, sizes={3: 0.5, 4: 0.5})
    shares = dict(zip(examples.written.tolist(), examples.targets.astype(float), strict=True))
    labels = dict(examples.labels.tolist())
    seen_bad = 0
    for start, end in zip(examples.starts[:-1], examples.starts[1:], strict=True):
        line = "".join(VOCABULARY[t] for t in examples.tokens[start:end])
        head, text = line[: line.index(":") + 1], line[line.index(":") + 1 :]
        problem = problem_of(head)
        assert problem is not None and not problem.is_test
        places = [i for i, symbol in enumerate(line) if symbol == ";"]
        numbers, parts = problem.numbers, text.split(";")
        for place, part in zip(places, parts, strict=False):
            step = parse_step(part.partition("|")[0])
            if can_reach(numbers, problem.target):
                good = [m for m in moves(numbers) if can_reach(m[1], problem.target)]
                weight = [count_solutions(rest, problem.target) for _, rest in good]
                expected = np.zeros(len(VOCABULARY))
                for (move, _), w in zip(good, weight, strict=True):
                    expected[VOCABULARY.index(str(move)[0])] += w
                at = start + line.rindex(part, 0, place)
                got = shares[int(at)]
                assert np.abs(got / 255 - expected / expected.sum()).max() < 0.01
            numbers = after(numbers, step)
            good_now = can_reach(numbers, problem.target)
            assert labels[int(start + place)] == good_now
            seen_bad += not good_now
        assert verify(head, text) == (numbers == (problem.target,))
        assert int(end) - 1 in shares
    assert seen_bad > 10


def test_example_lines_are_solved_and_nested():
    lines = example_lines(6, seed=1)
    assert lines[:3] == example_lines(3, seed=1)
    for line in lines:
        head, text = line[: line.index(":") + 1], line[line.index(":") + 1 :]
        assert verify(head, text) and not problem_of(head).is_test
    assert problem_of(prompt(Problem((1, 2), 3), lines)) == Problem((1, 2), 3)


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory):
    pytest.importorskip("safetensors")
    pytest.importorskip("transformers")
    from pyttc.tasks.checkpoint import save_model
    from pyttc.tasks.llama import Llama, Shape

    model = Llama(Shape(len(VOCABULARY), 64, 96, 2, 4, 2))
    model.initialize(0)
    folder = tmp_path_factory.mktemp("model")
    save_model(model, folder, torch.float32)
    return folder


def test_checkpoint_is_a_transformers_model(checkpoint_folder):
    import transformers

    from pyttc.tasks.checkpoint import load_model
    from pyttc.tasks.llama import Cache

    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint_folder)
    text = prompt(Problem((1, 2, 3), 20), example_lines(15, seed=0))
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text) and tokenizer.decode(ids) == text
    assert ids == [VOCABULARY.index(symbol) for symbol in text]
    with pytest.raises(Exception, match="UNK"):
        tokenizer("1 + 2")
    ours, tokens = load_model(checkpoint_folder), torch.tensor([ids])
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert len(ids) > 512  # both ways to compute attention
        torch.testing.assert_close(ours.logits(ours(tokens)), expected, atol=2e-5, rtol=0)
        cache = Cache(ours.shape, 1, 40, torch.float32)
        parts = [ours(tokens[:, i : i + 8], cache) for i in range(0, 40, 8)]
        got = ours.logits(torch.cat(parts, dim=1))
        torch.testing.assert_close(got, expected[:, :40], atol=2e-5, rtol=0)


def test_sampler_forces_what_it_should(checkpoint_folder):
    from pyttc.tasks.checkpoint import load_model
    from pyttc.tasks.sampler import sample

    model, problem = load_model(checkpoint_folder), Problem((6, 5, 4), 26)
    texts = sample(model, [problem] * 3, seed=0, begun=["", "6*5=", "6*5=30|30,4;30-4=26|26;"])
    assert texts[2].startswith("6*5=30|30,4;30-4=26|26;")
    assert all(len(text) <= 128 for text in texts)
    assert texts == sample(model, [problem] * 3, seed=0, begun=["", "6*5=", texts[2][:24]][:3])


def test_resumed_training_continues(tmp_path):
    pytest.importorskip("safetensors")
    from pyttc.tasks import train_countdown

    arguments = ["--size", "small", "--no-compile", "--shard", "1000", "--log-every", "1"]
    arguments += ["--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    for steps in ("2", "3"):
        train_countdown.main([*arguments, "--steps", steps, "--decay", "0"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "step" in row] == [1, 2, 3]
    assert [row["start"] for row in rows if "start" in row] == [0, 2]


def test_pack_fills_rows():
    from pyttc.tasks.train_countdown import pack

    lengths = np.random.default_rng(0).integers(20, 100, 2000)
    rows = pack(lengths, 128, 7, 64)
    used = [int(lengths[np.array(row) - 7].sum()) for row in rows]
    assert max(used) <= 128 and np.mean(used) > 115
    assert len({i for row in rows for i in row}) == sum(map(len, rows))
