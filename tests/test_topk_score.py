import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyttc

from .common import EXAMPLES, run_below
from .rows import KINDS, row

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALVES)


def reference(logits, k, temperature=1.0):
    return pyttc.topk_score(logits.double(), k, temperature=temperature, impl="reference")


def relative(got, want):
    """The largest error, absolute below 1 and relative above."""
    error = (got.double() - want).abs() / want.abs().clamp_min(1)
    return torch.where(got == want.float(), 0, error).max().item()  # both may overflow


def sample_inputs():
    x = torch.randn(4, 300)
    for k, logits in (
        (1, x),
        (300, x),
        (7, x[:, :7]),
        (20, x.bfloat16()),
        (20, x.half()),
        (5, x[1:3]),
        (5, x[:, 3:]),
        (5, x[::2]),
        (5, x[:1].expand(6, 300)),
        (5, x[:0]),
        (1, x[:, :1]),
        (9, x.double()),
        (64, torch.full((2, 500), -torch.inf)),
        (64, torch.zeros(2, 500)),
        (1024, torch.randn(1, 5000)),
        (3, x * 1e30),
    ):
        impl = {"impl": "reference"} if logits.dtype is torch.float64 else {}
        yield (logits, k), impl
    for temperature in (0.5, 1e-30, 1e30, 2.0):
        yield (x, 20), {"temperature": temperature}


def invalid_calls():
    x = torch.randn(4, 300)
    yield (x[0], 3), {}, "logits"
    yield (x[None], 3), {}, "logits"
    yield (x.int(), 3), {}, "logits"
    yield (x.t(), 3), {}, "logits"
    yield (x[:, ::2], 3), {}, "logits"
    yield (x[:, ::150], 2), {}, "logits"
    yield (x[:, :0], 1), {}, "logits"
    for k in (0, -1, 301, 2**40):
        yield (x, k), {}, "k"
    yield (torch.zeros(1, 2000), 1025), {}, "k"
    for temperature in (0.0, -1.0, float("nan"), float("inf"), -0.0):
        yield (x, 3), {"temperature": temperature}, "temperature"
    yield (x, 3), {"impl": "fast"}, "impl"


@pytest.mark.parametrize("args, kwargs, name", list(invalid_calls()))
def test_invalid_calls_name_the_argument(args, kwargs, name):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=name):
        pyttc.topk_score(*args, **kwargs)


def check_row(kind, v, k, dtype=torch.float32, temperature=1.0):
    logits = row(kind, v).clamp_max(torch.finfo(dtype).max).to(dtype)[None]
    got, want = (
        pyttc.topk_score(logits, k, temperature=temperature),
        reference(logits, k, temperature),
    )
    order = logits[0].double().sort(stable=True, descending=True).indices
    assert torch.equal(got.indices[0], order[:k])
    assert relative(got.logprobs, want.logprobs) < 1.3e-7
    assert relative(got.logsumexp, want.logsumexp) < 1.3e-7
    assert relative(got.entropy, want.entropy) < 1.3e-7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("v", [1, 2, 111, 256, 257, 4095, 32000])
def test_best_columns_are_exact(kind, v):
    if kind == "mostly -inf" and v < 998:
        v = 998
    for k in {1, min(v, 20), min(v, 1024)}:
        for dtype in DTYPES:
            check_row(kind, v, k, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_best_columns_are_exact_on_a_million(kind):
    check_row(kind, 2**20 - 3, 1024)


@pytest.mark.parametrize("temperature", [1e-310, 1e-40, 1e-6, 1e-4, 0.3, 70.0, 1e6, 1e35, 1e300])
@pytest.mark.parametrize("kind", ["normal", "wide", "offset", "float max", "holes"])
def test_any_temperature(kind, temperature):
    logits = row(kind, 5000)[None]
    got, want = (
        pyttc.topk_score(logits, 50, temperature=temperature),
        reference(logits, 50, temperature),
    )
    assert torch.equal(got.indices, want.indices)
    # The reference rounds logits / temperature to float64, an error of the size of the quotient's
    # ulp.
    slack = 2e-16 * float(logits[logits > -torch.inf].abs().max()) / max(temperature, 1e-250)
    if slack < 1e-8:
        assert relative(got.logprobs, want.logprobs) < 1.3e-7
        assert relative(got.entropy, want.entropy) < 1.3e-7
    else:
        assert not got.logprobs.isnan().any() and (got.entropy >= 0).all()
    lowest = float(want.logsumexp)
    assert got.logsumexp.item() == pytest.approx(lowest, rel=1e-6) or abs(lowest) > 3.4e38


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_at_most_twice_that_of_torch(scale, offset, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(64, 32000) * scale + offset).to(dtype)
    want, got = reference(logits, 20), pyttc.topk_score(logits, 20)
    logprobs = torch.log_softmax(logits.float(), -1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    for mine, torchs, exact in (
        (got.logprobs, logprobs.gather(-1, want.indices), want.logprobs),
        (got.logsumexp, torch.logsumexp(logits.float(), -1), want.logsumexp),
        (got.entropy, entropy, want.entropy),
    ):
        bound = 2 * (torchs - exact).abs().max()
        assert (mine - exact).abs().max() <= bound


def test_no_probability_exceeds_1():
    logits = torch.full((4096, 300), -50.0)
    logits[:, 7] = torch.linspace(0, 2, 4096)
    for offset in (0.0, 1e3):
        assert (pyttc.topk_score(logits + offset, 2).logprobs <= 0).all()


def test_rows_that_hold_nothing_to_choose_are_flagged_and_leave_the_others_alone():
    logits = torch.randn(9, 5000)
    alone = pyttc.topk_score(logits, 20)
    spoilt = logits.clone()
    spoilt[1, 4999] = torch.nan
    spoilt[3, 17] = torch.inf
    spoilt[5] = -torch.inf
    spoilt[7, :300] = torch.nan
    got = pyttc.topk_score(spoilt, 20)
    for i in range(9):
        if i in (1, 3, 5, 7):
            assert (got.indices[i] == -1).all() and (got.logprobs[i] == -torch.inf).all()
            assert got.logsumexp[i] == -torch.inf and got.entropy[i] == 0
        else:
            assert all(torch.equal(g[i], a[i]) for g, a in zip(got, alone, strict=True))
    want = pyttc.topk_score(spoilt, 20, impl="reference")
    assert torch.equal(got.indices, want.indices)


def test_columns_at_minus_infinity_follow_in_index_order():
    logits = torch.full((1, 600), -torch.inf)
    logits[0, [500, 3]] = torch.tensor([1.0, 2.0])
    got = pyttc.topk_score(logits, 6)
    assert got.indices.tolist() == [[3, 500, 0, 1, 2, 4]]
    assert (got.logprobs[0, 2:] == -torch.inf).all()


def columns_and_k():
    v = st.sampled_from([1, 5, 111, 256, 300, 4096, 5000, 40000])
    return v.flatmap(lambda v: st.tuples(st.just(v), st.integers(1, min(v, 60))))


def draw_logits(rows, v, seed):
    g = torch.Generator().manual_seed(seed)
    scale = [0.1, 1.0, 8.0][seed % 3]
    logits = torch.randn(rows, v, generator=g) * scale + [0.0, 1e4][seed % 2]
    return logits.to(DTYPES[seed % 3])


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


axis = settings(max_examples=EXAMPLES, derandomize=True)


@axis
@given(columns_and_k(), st.integers(1, 6), st.integers(0, 99_999))
def test_bits_do_not_depend_on_the_batch(shape, rows, seed):
    v, k = shape
    logits = draw_logits(rows, v, seed)
    together = pyttc.topk_score(logits, k)
    for i in range(rows):
        assert same([t[i : i + 1] for t in together], pyttc.topk_score(logits[i : i + 1], k))


@axis
@given(columns_and_k(), st.integers(2, 6), st.integers(0, 99_999))
def test_bits_do_not_depend_on_the_order_of_rows(shape, rows, seed):
    v, k = shape
    logits = draw_logits(rows, v, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    want = [t[order] for t in pyttc.topk_score(logits, k)]
    assert same(want, pyttc.topk_score(logits[order], k))


@axis
@given(columns_and_k(), st.integers(0, 99_999))
def test_bits_do_not_depend_on_the_neighbours(shape, seed):
    v, k = shape
    logits = draw_logits(3, v, seed)
    alone = [t[1] for t in pyttc.topk_score(logits, k)]
    for neighbour in (torch.nan, torch.inf, -torch.inf, 60000.0):
        logits[0] = logits[2] = neighbour
        assert same(alone, [t[1] for t in pyttc.topk_score(logits, k)])


@axis
@given(columns_and_k(), st.integers(1, 3), st.integers(1, 9), st.integers(0, 99_999))
def test_bits_do_not_depend_on_strides(shape, rows, gap, seed):
    v, k = shape
    logits = draw_logits(rows, v, seed)
    buffer = torch.full((rows, v + gap), torch.nan, dtype=logits.dtype)
    view = buffer[:, gap // 2 : gap // 2 + v]
    view.copy_(logits)
    assert same(pyttc.topk_score(logits, k), pyttc.topk_score(view, k))
    assert same(
        pyttc.topk_score(logits[:1].repeat(3, 1), k), pyttc.topk_score(logits[:1].expand(3, v), k)
    )


@axis
@given(columns_and_k(), st.integers(1, 3), st.integers(2, 5), st.integers(0, 99_999))
def test_bits_do_not_depend_on_threads(shape, rows, threads, seed):
    v, k = shape
    logits = draw_logits(rows, v * 3 if v > 9000 else v, seed)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = pyttc.topk_score(logits, k)
        torch.set_num_threads(threads)
        assert same(one, pyttc.topk_score(logits, k))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("at", [0, 20_000, 39_999])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_row_is_seen_by_whichever_thread_reads_it(at, value):
    logits = torch.randn(1, 40_000)
    logits[0, at] = value
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        bad = pyttc.topk_score(logits, 5)
    finally:
        torch.set_num_threads(before)
    assert (bad.indices == -1).all() and (bad.logsumexp == -torch.inf).all()


def test_k_shows_in_nothing_but_how_many_columns_come_back():
    logits = torch.randn(2, 9000)
    whole = pyttc.topk_score(logits, 1024)
    for k in (1, 20, 64, 500):
        part = pyttc.topk_score(logits, k)
        assert same(part, (whole.logprobs[:, :k], whole.indices[:, :k], *whole[2:]))


@pytest.mark.parametrize("level", ["generic", "avx2"])
def test_other_instruction_sets(level):
    run_below(level, __file__, "test_best_columns_are_exact or test_any_temperature")
