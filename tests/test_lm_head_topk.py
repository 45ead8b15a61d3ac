"""lm_head_topk against topk_score and sample on its own logits, and against torch.

`own_logits` gets those through the public op: the log-sum-exp of a vocabulary of one token is its
logit, and at a temperature of 2**-100 no rounding of a logarithm reaches it.
"""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttc import lm_head_topk, sample, topk_score

from .common import EXAMPLES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
properties = settings(max_examples=EXAMPLES, derandomize=True)


def inputs(rows, columns, width, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator) * scale
    weight = torch.randn(columns, width, generator=generator) / width**0.5
    return hidden.to(dtype), weight.to(dtype)


def counters(rows, seed=0):
    return {"seed": seed, "path_ids": torch.arange(rows) * 7, "positions": torch.arange(rows) + 3}


def own_logits(hidden, weight):
    t = 2.0**-100
    columns = [lm_head_topk(hidden, w[None], 1, temperature=t).logsumexp * t for w in weight]
    return torch.stack(columns, 1)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def rows_of(result, rows):
    return type(result)(*(field[rows] for field in result))


def bitmask(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    words = (columns + 31) // 32
    return torch.randint(-(2**31), 2**31, (rows, words), generator=generator).int()


def sample_inputs():
    calls = []
    for dtype in DTYPES:
        for rows, columns, width, k in (
            (3, 40, 17, 5),
            (1, 300, 64, 300),
            (0, 9, 8, 2),
            (2, 1, 1, 1),
        ):
            hidden, weight = inputs(rows, columns, width, dtype)
            calls.append(((hidden, weight, k), {}))
            calls.append(((hidden, weight, k - 1), {**counters(rows), "top_p": 0.9}))
    hidden, weight = inputs(4, 70, 30)
    strided = torch.zeros(4, 50)[:, :30]
    strided.copy_(hidden)
    calls.append(((strided, weight[::2], 7), {"temperature": 0.5}))
    calls.append(((hidden[:1].expand(4, 30), weight, 7), {**counters(4), "temperature": 0.0}))
    exact = {"impl": "reference"}
    calls.append(((hidden.double(), weight.double(), 7), exact))
    calls.append(((hidden.double(), weight.double(), 7), {**counters(4), **exact}))
    mask = bitmask(4, 70)
    calls.append(((hidden, weight, 0), {**counters(4), "mask": mask, "top_k": 5, "min_p": 0.01}))
    per_row = {
        "seed": torch.arange(4),
        "temperature": torch.tensor([0.0, 0.5, 1.0, 2.0]),
        "top_p": torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64),
    }
    calls.append(((hidden, weight, 3), {**counters(4), **per_row}))
    calls.append(((hidden, weight, 3), {**counters(4), **per_row, "mask": mask, "top_k": 9}))
    return calls


def invalid_calls():
    hidden, weight = inputs(3, 40, 16)
    paths = counters(3)
    calls = [
        ((hidden[0], weight, 5), {}, "hidden"),
        ((hidden, weight[0], 5), {}, "weight"),
        ((hidden.int(), weight.int(), 5), {}, "hidden"),
        ((hidden, weight.bfloat16(), 5), {}, "weight"),
        ((hidden[:, :8], weight, 5), {}, "weight"),
        ((hidden[:, :0], weight[:, :0], 5), {}, "hidden"),
        ((hidden, weight[:0], 5), {}, "weight"),
        ((hidden, weight.to("meta"), 5), {}, "weight"),
        ((torch.randn(16, 3).T, weight, 5), {}, "hidden"),
        ((hidden, torch.randn(16, 40).T, 5), {}, "weight"),
        ((hidden[:, ::8], weight[:, ::8], 5), {}, "hidden"),
        ((hidden, weight, 0), {}, "k"),
        ((hidden, weight, 41), {}, "k"),
        ((hidden, torch.randn(2000, 16), 1025), {}, "k"),
        ((hidden, weight, 41), paths, "k"),
        ((hidden, weight, -1), paths, "k"),
    ]
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        calls.append(((hidden, weight, 5), {"temperature": temperature}, "temperature"))
    for name, value in (
        ("seed", 1),
        ("positions", paths["positions"]),
        ("top_k", 3),
        ("min_p", 0.1),
    ):
        calls.append(((hidden, weight, 5), {name: value}, name))
    bad = {
        "seed": (-1, torch.arange(3) - 1, torch.arange(2)),
        "path_ids": (torch.arange(2), torch.arange(3) - 1, torch.arange(3) + 2**32, torch.rand(3)),
        "positions": (None, torch.arange(3)[None], torch.arange(3).to("meta")),
        "temperature": (-0.5, float("nan"), torch.full((3,), -1.0), torch.ones(3).half()),
        "top_k": (torch.ones(3), torch.ones(4).long()),
        "top_p": (1.5, torch.full((3,), float("nan"))),
        "min_p": (-0.1, torch.full((3, 1), 0.1)),
        "mask": (bitmask(3, 70), bitmask(2, 40), bitmask(3, 40).long()),
    }
    for name, values in bad.items():
        calls += [((hidden, weight, 5), {**paths, name: value}, name) for value in values]
    return calls


def test_the_temperature_is_1_by_itself():
    hidden, weight = inputs(3, 40, 16)
    for path in ({}, counters(3)):
        said = lm_head_topk(hidden, weight, 5, **path, temperature=1.0)
        for a, b in zip(lm_head_topk(hidden, weight, 5, **path), said, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("case", range(len(invalid_calls())))
def test_invalid_calls_name_the_argument(case):
    args, kwargs, name = invalid_calls()[case]
    for impl in (None, "reference"):
        with pytest.raises((ValueError, TypeError), match=rf"(?<!\w){name}(?!\w)"):
            lm_head_topk(*args, **kwargs, impl=impl)


SHAPES = [(5, 600, 70), (3, 4500, 33), (2, 257, 1), (70, 300, 16), (4, 1, 9)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns, width", SHAPES)
def test_is_topk_score_of_its_own_logits(rows, columns, width, dtype):
    hidden, weight = inputs(rows, columns, width, dtype)
    weight[columns // 2 :: 3] = weight[0].clone()  # ties go to the lowest index
    logits = own_logits(hidden, weight)
    exact = hidden.double() @ weight.double().T
    assert (logits - exact).abs().max() <= 1e-6 * (
        hidden.double().abs() @ weight.double().abs().T
    ).max()
    for k in sorted({1, min(20, columns), min(1024, columns)}):
        for t in (1.0, 0.3):
            assert equal(
                lm_head_topk(hidden, weight, k, temperature=t), topk_score(logits, k, temperature=t)
            )


FILTERS = [
    {},
    {"temperature": 0.0},
    {"top_k": 10},
    {"top_p": 0.3},
    {"top_p": 0.999},  # keeps more columns than a scan looks at
    {"min_p": 0.0001, "temperature": 3.0},
    {"top_k": 1500, "top_p": 0.99},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.02, "temperature": 0.7},
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_is_sample_of_its_own_logits(filters, masked):
    rows, columns = 6, 2100
    hidden, weight = inputs(rows, columns, 24, scale=2.0)
    logits = own_logits(hidden, weight)
    if masked:
        filters = {**filters, "mask": bitmask(rows, columns)}
        filters["mask"][1] = 0  # nothing is left
        filters["mask"][2, 5:] = 0
    for seed in range(20):
        parameters = {**counters(rows, seed), **filters}
        drawn = lm_head_topk(hidden, weight, 9, **parameters)
        assert equal(drawn, sample(logits, topk=9, **parameters))
        expected = sample(logits, topk=9, impl="reference", **parameters)
        assert torch.equal(drawn.tokens, expected.tokens)


def test_per_row_parameters_are_those_of_the_row():
    hidden, weight = inputs(6, 500, 24)
    parameters = {
        "seed": torch.tensor([5, 5, 6, 7, 8, 9]),
        "temperature": torch.tensor([0.0, 0.5, 1.0, 2.0, 1.0, 1.0]),
        "top_k": torch.tensor([0, 5, 400, 0, -1, 2]),
        "top_p": torch.tensor([1.0, 0.9, 0.95, 0.5, 0.999, 0.0]),
        "min_p": torch.tensor([0.0, 0.1, 0.0, 0.0, 0.001, 0.0], dtype=torch.float64),
    }
    paths = counters(6)
    together = lm_head_topk(hidden, weight, 4, **{**paths, **parameters})
    for i in range(6):
        one = {name: value[i].item() for name, value in parameters.items()}
        alone = {name: paths[name][i : i + 1] for name in ("path_ids", "positions")}
        drawn = lm_head_topk(hidden[i : i + 1], weight, 4, **one, **alone)
        assert equal(rows_of(together, slice(i, i + 1)), drawn)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_error_is_at_most_twice_torchs(dtype, offset):
    hidden, weight = inputs(16, 5000, 256, dtype)
    if offset:  # a direction that all of the vocabulary shares
        hidden[:, 0], weight[:, 0] = offset / 16, 16
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    scored = lm_head_topk(hidden, weight, 50)
    theirs = torch.log_softmax(torch.nn.functional.linear(hidden, weight), -1).gather(
        1, scored.indices
    )
    exact_topk = exact.gather(1, scored.indices)
    assert (scored.logprobs - exact_topk).abs().max() <= 2 * (
        theirs - exact_topk
    ).abs().max() + 1e-6
    entropy = -(exact.exp() * exact).sum(-1)
    assert (scored.entropy - entropy).abs().max() <= 1e-5 * max(1, offset)
    # What is returned is the top of the row, up to the error of the logits.
    kth = exact.topk(50).values[:, -1]
    assert (exact_topk.min(-1).values >= kth - 1e-4 * max(1, offset / 10)).all()


def test_float64_reference():
    hidden, weight = inputs(4, 300, 40)
    result = lm_head_topk(hidden.double(), weight.double(), 6, impl="reference")
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    assert result.logprobs.dtype == torch.float64
    assert torch.allclose(result.logprobs, exact.topk(6).values, atol=1e-12)


# Bit-identity, an axis a test. V = 4500 is two segments, which two threads share.

CALLS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES),
        "rows": st.integers(2, 20),
        "columns": st.sampled_from([1, 31, 256, 300, 700, 4500]),
        "width": st.integers(1, 70),
        "seed": st.integers(0, 2**20),
        "draw": st.booleans(),
    }
)
DRAWS = {"top_p": 0.9, "temperature": 0.8}


def make(call):
    hidden, weight = inputs(
        call["rows"], call["columns"], call["width"], call["dtype"], call["seed"]
    )
    parameters = {**counters(call["rows"], call["seed"]), **DRAWS} if call["draw"] else {}
    return hidden, weight, min(call["columns"], 1 + call["seed"] % 40), parameters


def take(parameters, rows):
    return {n: v[rows] if isinstance(v, torch.Tensor) else v for n, v in parameters.items()}


@properties
@given(CALLS, st.data())
def test_bits_do_not_depend_on_the_batch(call, data):
    hidden, weight, k, parameters = make(call)
    begin = data.draw(st.integers(0, call["rows"] - 1))
    part = slice(begin, data.draw(st.integers(begin + 1, call["rows"])))
    whole = lm_head_topk(hidden, weight, k, **parameters)
    assert equal(
        rows_of(whole, part), lm_head_topk(hidden[part], weight, k, **take(parameters, part))
    )


@properties
@given(CALLS)
def test_bits_do_not_depend_on_the_order_of_rows(call):
    hidden, weight, k, parameters = make(call)
    order = torch.randperm(call["rows"], generator=torch.Generator().manual_seed(call["seed"]))
    whole = lm_head_topk(hidden, weight, k, **parameters)
    shuffled = lm_head_topk(hidden[order], weight, k, **take(parameters, order))
    assert equal(rows_of(whole, order), shuffled)


@properties
@given(CALLS, st.sampled_from([float("nan"), float("inf"), 1e4, 0.0]))
def test_bits_do_not_depend_on_the_neighbours(call, value):
    hidden, weight, k, parameters = make(call)
    whole = lm_head_topk(hidden, weight, k, **parameters)
    own = call["seed"] % call["rows"]
    others = torch.arange(call["rows"]) != own
    hidden[others] = value
    changed = lm_head_topk(hidden, weight, k, **parameters)
    assert equal(rows_of(whole, slice(own, own + 1)), rows_of(changed, slice(own, own + 1)))


@properties
@given(CALLS, st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
def test_bits_do_not_depend_on_strides(call, hidden_gap, weight_gap, offset):
    hidden, weight, k, parameters = make(call)

    def spread(x, gap):
        room = torch.full((x.shape[0], x.shape[1] + gap + offset), float("nan"), dtype=x.dtype)
        view = room[:, offset : offset + x.shape[1]]
        view.copy_(x)
        return view

    whole = lm_head_topk(hidden, weight, k, **parameters)
    strided = lm_head_topk(spread(hidden, hidden_gap), spread(weight, weight_gap), k, **parameters)
    assert equal(whole, strided)


@properties
@given(CALLS, st.integers(2, 5))
def test_bits_do_not_depend_on_threads(call, threads):
    hidden, weight, k, parameters = make(call)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = lm_head_topk(hidden, weight, k, **parameters)
        torch.set_num_threads(threads)
        assert equal(alone, lm_head_topk(hidden, weight, k, **parameters))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_numbers(dtype):
    hidden, weight = inputs(6, 600, 40, dtype)
    clean = lm_head_topk(hidden, weight, 5)
    hidden[1, 3], hidden[4, 39] = float("nan"), float("inf")
    result = lm_head_topk(hidden, weight, 5)
    good = torch.tensor([0, 2, 3, 5])
    assert equal(rows_of(result, good), rows_of(clean, good))
    for i in (1, 4):
        assert (result.indices[i] == -1).all() and (result.logprobs[i] == -torch.inf).all()
        assert result.logsumexp[i] == -torch.inf and result.entropy[i] == 0
    drawn = lm_head_topk(hidden, weight, 5, **counters(6))
    assert drawn.valid.tolist() == [True, False, True, True, False, True]
    assert (drawn.tokens[[1, 4]] == -1).all()


def test_columns_at_minus_infinity():
    hidden, weight = inputs(3, 700, 8)
    hidden[:, 0] = 1
    weight[:, 0] = 0
    weight[5:690, 0] = -torch.inf
    result = lm_head_topk(hidden, weight, 600)
    expected = lm_head_topk(hidden, weight, 600, impl="reference")
    assert torch.equal(result.indices, expected.indices)
    assert (result.logprobs[:, 15:] == -torch.inf).all()
    weight[:, 0] = -torch.inf
    assert (lm_head_topk(hidden, weight, 3).indices == -1).all()
    assert not lm_head_topk(hidden, weight, 3, **counters(3)).valid.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype):
    hidden, weight = inputs(0, 300, 8, dtype)
    scored = lm_head_topk(hidden, weight, 4)
    assert [tuple(x.shape) for x in scored] == [(0, 4), (0, 4), (0,), (0,)]
    drawn = lm_head_topk(hidden, weight, 4, **counters(0), mask=bitmask(0, 300))
    assert drawn.tokens.shape == (0,) and drawn.topk_indices.shape == (0, 4)


def test_huge_logits():
    hidden, weight = inputs(4, 500, 20)
    hidden, weight = hidden.sign() * 1e18, weight.sign() * 1e18 * torch.rand(500, 1)
    result = lm_head_topk(hidden, weight, 5)
    expected = lm_head_topk(hidden.double(), weight.double(), 5, impl="reference")
    assert torch.equal(result.indices, expected.indices)
    assert torch.allclose(result.logsumexp.double(), expected.logsumexp, rtol=1e-6)
    overflowing = lm_head_topk(hidden * 1e3, weight * 1e3, 5)
    assert (overflowing.indices == -1).all()


def test_the_largest_k():
    hidden, weight = inputs(3, 1500, 20)
    result = lm_head_topk(hidden, weight, 1024)
    expected = lm_head_topk(hidden.double(), weight.double(), 1024, impl="reference")
    assert torch.allclose(result.logprobs.double(), expected.logprobs, atol=1e-5)
    assert all(len(set(row.tolist())) == 1024 for row in result.indices)


def test_logits_are_not_held_in_memory():
    """The peak of a process whose logits would take 400 MB."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads VmHWM of /proc/self/status")
    script = """
import torch, pyttc
def peak():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x[:5] == "VmHWM") / 1024
weight = torch.randn(200_000, 8)
hidden = torch.randn(500, 8)
paths = torch.arange(500)
pyttc.lm_head_topk(hidden[:2], weight, 20)
before = peak()
pyttc.lm_head_topk(hidden, weight, 20)
pyttc.lm_head_topk(hidden, weight, 20, seed=0, path_ids=paths, positions=paths)
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 60
