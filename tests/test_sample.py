import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyttc
from pyttc import _C
from pyttc.ops.philox import philox, uniforms
from pyttc.ops.sample import keep, unpack_mask

from .common import EXAMPLES
from .rows import KINDS, row

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VECTORS = (  # Random123's known answers for philox4x32-10: counter, key, result
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize("counter, key, want", VECTORS)
def test_philox_known_answers(counter, key, want):
    assert _C.philox(key, *counter) == want
    signed = key - 2**64 if key >= 2**63 else key
    assert tuple(int(word) for word in philox(signed, counter)) == want


def call(logits, n=None, seed=7, **kwargs):
    """One draw from each row, or n draws from a row given as [V]."""
    if n is not None:
        logits = logits.expand(n, -1)
    rows = logits.shape[0]
    ids = {"path_ids": torch.arange(rows), "positions": torch.full((rows,), 5)}
    return pyttc.sample(logits, **{"seed": seed, **ids, **kwargs})


def pack(allowed):
    """bool [B, V] as the bitmask [B, ceil(V / 32)]."""
    rows, v = allowed.shape
    bits = torch.zeros(rows, (v + 31) // 32 * 32, dtype=torch.int64)
    bits[:, :v] = allowed
    words = (bits.view(rows, -1, 32) << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def random_mask(rows, v, seed=0):
    allowed = torch.rand(rows, v, generator=torch.Generator().manual_seed(seed)) < 0.6
    allowed[:, v // 2] = True
    return pack(allowed)


def sample_inputs():
    x = torch.randn(4, 300)
    ids, positions = torch.arange(4), torch.full((4,), 9, dtype=torch.int32)
    for kwargs in (
        {},
        {"topk": 5},
        {"topk": 300},
        {"temperature": 0.0},
        {"temperature": 0.3, "top_k": 7},
        {"top_p": 0.9},
        {"top_p": 0.0},
        {"min_p": 0.1},
        {"top_k": 50, "top_p": 0.8, "min_p": 0.05, "topk": 3},
        {"mask": random_mask(4, 300)},
        {"mask": random_mask(4, 300), "top_p": 0.5},
        {"mask": torch.zeros(4, 10, dtype=torch.int32)},
        {"temperature": torch.tensor([0.0, 1.0, 0.5, 2.0])},
        {"seed": torch.arange(4), "top_k": torch.tensor([0, 1, 5, 500], dtype=torch.int32)},
        {"top_p": torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64), "topk": 2},
        {"min_p": torch.full((4,), 0.2), "mask": random_mask(4, 300)},
    ):
        yield (x,), {"seed": 3, "path_ids": ids, "positions": positions, **kwargs}
    for logits in (x.bfloat16(), x.half(), x[:, 3:], x[::2], x[:1].expand(5, 300), x[:0], x[:, :1]):
        n = logits.shape[0]
        yield (logits,), {"seed": 3, "path_ids": torch.arange(n), "positions": torch.arange(n)}
    masked = {"mask": random_mask(4, 64, seed=1), "temperature": 0.7, "topk": 2}
    yield (x[:, :64],), {"seed": 3, "path_ids": ids, "positions": ids, **masked}
    doubles = {"seed": 3, "path_ids": ids, "positions": ids, "impl": "reference"}
    yield (x.double(),), {**doubles, "top_p": 0.9, "topk": 4}


def invalid_calls():
    x, ids = torch.randn(4, 300), torch.arange(4)
    good = {"seed": 3, "path_ids": ids, "positions": ids}
    nan, inf = float("nan"), float("inf")
    for logits in (x[0], x[None], x.int(), x.t(), x[:, ::2], x[:, :0]):
        yield (logits,), good, "logits"
    for name in ("path_ids", "positions"):
        for value in (ids.float(), ids[:3], ids[None], ids - 1, ids + 2**32, ids.to("meta")):
            yield (x,), {**good, name: value}, name
    for name, values in (
        ("seed", (-1, -(2**63))),
        ("temperature", (-1.0, nan, inf)),
        ("top_p", (-0.1, 1.1, nan, inf)),
        ("min_p", (-0.1, 1.1, nan, -inf)),
    ):
        for value in values:
            dtype = torch.int64 if name == "seed" else torch.float64
            yield (x,), {**good, name: value}, name
            yield (x,), {**good, name: torch.tensor([3, 0, value, 1], dtype=dtype) / 1}, name
            last = torch.tensor([0, 0, 0, value], dtype=dtype)
            yield (x,), {**good, name: last}, name
            yield (x,), {**good, name: last, "impl": "reference"}, name
    for name in ("seed", "temperature", "top_k", "top_p", "min_p"):
        zeros = torch.zeros(4, dtype=torch.int64 if name in ("seed", "top_k") else torch.float32)
        for value in (zeros.bool(), zeros[:3], zeros[None], zeros.to("meta")):
            yield (x,), {**good, name: value}, name
    for seed in (2**63, -(2**63) - 1, 0.5):  # beside a tensor each number becomes one
        yield (x,), {**good, "seed": seed, "temperature": torch.ones(4)}, "seed"
    for topk in (-1, 301):
        yield (x,), {**good, "topk": topk}, "topk"
    yield (torch.zeros(4, 3000),), {**good, "topk": 1025}, "topk"
    words = torch.zeros(4, 10, dtype=torch.int32)
    for mask in (words.long(), words[:3], words[:, :9], words[0], words.to("meta"), words.t()):
        yield (x,), {**good, "mask": mask}, "mask"
    yield (x,), {**good, "mask": torch.zeros(4, 20, dtype=torch.int32)[:, ::2]}, "mask"
    yield (x[:, :64],), {**good, "mask": torch.zeros(4, 4, dtype=torch.int32)[:, ::2]}, "mask"
    yield (x,), {**good, "impl": "fast"}, "impl"


@pytest.mark.parametrize("args, kwargs, name", list(invalid_calls()))
def test_invalid_calls_name_the_argument(args, kwargs, name):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=name):
        pyttc.sample(*args, **kwargs)


# Draws against inverse transform sampling in float64.


def kept_columns(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, mask=None):
    """[V] bool, by the reference's filters, and the float64 weights of all columns."""
    x = logits.double()[None]
    allowed = x if mask is None else x.masked_fill(~unpack_mask(mask, len(logits)), -torch.inf)
    number = [
        torch.tensor([float(value)], dtype=torch.float64) for value in (temperature, top_p, min_p)
    ]
    kept = keep(allowed, number[0], torch.tensor([top_k]), number[1], number[2])[0]
    return kept, ((x[0] - x[0].max()) / temperature).exp()


def inverse_cdf(weights, u):
    """The first column whose cumulative weight exceeds u times the total."""
    cumulative = weights.cumsum(0)
    last = int((weights > 0).nonzero()[-1])
    return torch.searchsorted(cumulative, u * cumulative[-1], right=True).clamp_max(last)


def assert_draws(got, weights, u, share=1e-4):
    """Tokens of inverse_cdf, but for a share of draws within a float32 ulp of a boundary."""
    want = inverse_cdf(weights, u)
    wrong = got != want
    edge = (weights.cumsum(0) / weights.sum())[torch.minimum(got, want)[wrong]]
    assert ((edge - u[wrong]).abs() < 2.0**-24).all()
    assert wrong.sum() <= max(1, share * len(u))


def numbers(n, seed=7):
    return uniforms(seed, torch.arange(n), torch.full((n,), 5))


FILTERS = (
    {},
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 1500},
    {"top_p": 0.0},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 1500, "top_p": 0.8, "min_p": 0.3},
    {"top_k": 3000, "top_p": 0.3, "temperature": 1.7},
    {"top_p": 0.9, "min_p": 0.001, "temperature": 0.3},
)


@pytest.mark.parametrize("kind", ["normal", "flat", "two-valued", "bfloat16", "ascending", "ulp"])
def test_draws_equal_the_float64_reference_on_a_large_vocabulary(kind):
    v, n = 128256, 131072
    logits = row(kind, v, seed=3)
    assert_draws(call(logits, n).tokens, kept_columns(logits)[1], numbers(n))


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_filters_keep_what_the_reference_keeps(filters, masked):
    n = 4096
    for kind in KINDS:
        for v in (1, 111, 5003):
            if kind == "mostly -inf" and v < 998:
                continue
            logits = row(kind, v, seed=v)
            mask = random_mask(1, v, seed=v) if masked else None
            kept, weights = kept_columns(logits, mask=mask, **filters)
            got = call(logits, n, mask=None if mask is None else mask.expand(n, -1), **filters)
            if not kept.any():
                assert not got.valid.any() and (got.tokens == -1).all()
                continue
            if weights[kept].sum() == 0:  # all that is kept lies too far below the row's best
                weights = kept_columns(torch.where(kept, logits, -torch.inf), **filters)[1]
            assert kept[got.tokens].all() and got.valid.all()
            assert_draws(got.tokens, weights * kept, numbers(n))
            # Raw = processed + kept, each against float64.
            log_p = torch.log_softmax(logits.double() / filters.get("temperature", 1.0), -1)
            log_kept = log_p[kept].logsumexp(0)
            for mine, exact in (
                (got.logprobs, log_p[got.tokens]),
                (got.log_kept_mass, log_kept.expand(n)),
                (got.processed_logprobs, log_p[got.tokens] - log_kept),
            ):
                torch.testing.assert_close(mine.double(), exact, rtol=2e-7, atol=2e-7)
            total = got.processed_logprobs.double() + got.log_kept_mass.double()
            torch.testing.assert_close(got.logprobs.double(), total, rtol=2e-7, atol=1e-7)


def test_native_says_of_each_sample_what_the_reference_says():
    for args, kwargs in sample_inputs():
        if "impl" in kwargs:
            continue
        native, reference = (
            pyttc.sample(*args, **kwargs, impl=impl) for impl in ("native", "reference")
        )
        for mine, theirs in zip(native, reference, strict=True):
            assert mine.dtype == theirs.dtype
            if mine.is_floating_point():
                torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
            else:
                assert torch.equal(mine, theirs)


def test_an_uncovered_top_p_is_exact_on_a_large_vocabulary():
    n = 8192
    for kind in ("normal", "flat", "constant", "ulp", "bfloat16"):
        logits = row(kind, 128256, seed=4)
        for filters in ({"top_p": 0.7}, {"top_k": 90000, "top_p": 0.9}, {"min_p": 0.4}):
            kept, weights = kept_columns(logits, **filters)
            got = call(logits, n, **filters)
            mass = (weights[kept].sum() / weights.sum()).log().item()
            assert got.log_kept_mass[0].item() == pytest.approx(mass, abs=3e-7), (kind, filters)
            # Values one ulp apart: what float rounds of their weights does not average out.
            share = 2e-3 if kind == "ulp" else 1e-4
            assert_draws(got.tokens, weights * kept, numbers(n), share)


@pytest.mark.parametrize("misled", [5.0, -5.0, -200.0])
@pytest.mark.parametrize("top_p", [0.9, 0.99])
def test_a_nucleus_is_exact_where_a_sample_of_the_row_misleads(misled, top_p):
    n, v = 4096, 128256
    logits = row("normal", v, seed=6)
    sampled = torch.arange(v) // 16 % (v // 16 // 256) == 0
    mask = pack(torch.rand(1, v, generator=torch.Generator().manual_seed(1)) < 0.7)
    for x in (torch.where(sampled, misled, logits), torch.where(sampled, logits, misled)):
        for only in (None, mask):
            kept, weights = kept_columns(x, top_p=top_p, mask=only)
            got = call(x, n, top_p=top_p, mask=None if only is None else only.expand(n, -1))
            mass = (weights[kept].sum() / weights.sum()).log().item()
            assert got.log_kept_mass[0].item() == pytest.approx(mass, abs=3e-7)
            assert_draws(got.tokens, weights * kept, numbers(n))


def test_greedy_takes_the_first_of_the_best():
    logits = torch.tensor([[0.0, 2.0, -1.0, 2.0], [3.0, 3.0, 3.0, 3.0], [-0.0, 0.0, -1.0, -1.0]])
    for kwargs in ({"temperature": 0.0}, {"top_p": 0.0}, {"top_k": 1}):
        got = call(logits, **kwargs)
        assert got.tokens.tolist() == [1, 0, 0]
        assert (got.processed_logprobs == 0).all()
        assert torch.equal(got.log_kept_mass, got.logprobs)
        want = torch.log_softmax(logits.double(), -1)[range(3), [1, 0, 0]]
        torch.testing.assert_close(got.logprobs.double(), want, rtol=1e-7, atol=1e-7)
    mask = pack(torch.tensor([[True, False, True, True]] * 3))
    assert call(logits, temperature=0.0, mask=mask).tokens.tolist() == [3, 0, 0]


@pytest.mark.parametrize("kwargs", [{}, {"top_p": 0.9}, {"top_k": 30}, {"min_p": 1e-9}], ids=str)
def test_columns_without_probability_are_never_drawn(kwargs):
    for low in (-torch.inf, -1e6):
        logits = torch.full((20000,), low)
        logits[[5000, 5001, 9999]] = torch.tensor([1.0, 0.5, 2.0])
        got = call(logits, 20000, **kwargs).tokens.unique().tolist()
        assert got == [5000, 5001, 9999]


def test_rows_with_nothing_to_draw_are_flagged_and_leave_the_others_alone():
    logits = torch.randn(9, 5000)
    kwargs = {"topk": 20, "top_p": 0.9}
    alone = call(logits, **kwargs)
    spoilt = logits.clone()
    spoilt[1, 4999], spoilt[3, 17], spoilt[5], spoilt[7, :300] = (
        torch.nan,
        torch.inf,
        -torch.inf,
        torch.nan,
    )
    got, want = call(spoilt, **kwargs), call(spoilt, impl="reference", **kwargs)
    for i in range(9):
        if i in (1, 3, 5, 7):
            assert got.tokens[i] == -1 and not got.valid[i] and got.entropy[i] == 0
            for number in (got.logprobs, got.processed_logprobs, got.log_kept_mass):
                assert number[i] == -torch.inf
            assert (got.topk_indices[i] == -1).all() and (got.topk_logprobs[i] == -torch.inf).all()
        else:
            assert all(torch.equal(g[i], a[i]) for g, a in zip(got, alone, strict=True))
    assert torch.equal(got.tokens, want.tokens) and torch.equal(got.valid, want.valid)
    assert torch.equal(got.topk_indices, want.topk_indices)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("filters", [{}, {"top_k": 30}, {"top_p": 0.9}], ids=str)
def test_a_mask_allows_the_columns_of_its_bits_in_every_dtype(dtype, filters):
    n, v = 4096, 3003
    logits = row("normal", v, seed=8).to(dtype)
    for allowed in (torch.arange(v) % 2 == 0, torch.arange(v) % 3 != 1, torch.arange(v) % 700 == 9):
        mask = pack(allowed[None])
        kept, weights = kept_columns(logits, mask=mask, **filters)
        got = call(logits, n, mask=mask.expand(n, -1), **filters)
        assert_draws(got.tokens, weights * kept, numbers(n))
        mass = (weights[kept].sum() / weights.sum()).log().item()
        assert got.log_kept_mass[0].item() == pytest.approx(mass, abs=3e-7)


def test_a_mask_that_leaves_nothing_keeps_the_rows_own_numbers():
    logits = torch.randn(3, 777)
    logits[:, 700:] = -torch.inf
    allowed = torch.ones(3, 777, dtype=torch.bool)
    allowed[1] = False
    allowed[2, :700] = False  # only columns at -inf are allowed
    got, free = call(logits, mask=pack(allowed), topk=9), call(logits, topk=9)
    assert got.tokens[1:].tolist() == [-1, -1] and got.valid.tolist() == [True, False, False]
    assert got.tokens[0] == free.tokens[0]
    assert (got.logprobs[1:] == -torch.inf).all() and (got.log_kept_mass[1:] == -torch.inf).all()
    assert torch.equal(got.entropy, free.entropy)
    assert torch.equal(got.topk_indices, free.topk_indices)


def test_mask_bits_past_the_vocabulary_are_ignored():
    logits = torch.randn(2, 40)
    mask = random_mask(2, 40)
    dirty = mask.clone()
    dirty[:, 1] |= -(1 << 8)
    assert torch.equal(call(logits, mask=mask).tokens, call(logits, mask=dirty).tokens)


def test_allowed_columns_far_below_the_rows_best_are_still_drawn_right():
    logits = torch.cat([torch.tensor([5000.0]), row("normal", 999)])
    allowed = torch.ones(1, 1000, dtype=torch.bool)
    allowed[0, 0] = False
    got = call(logits, 3000, mask=pack(allowed).expand(3000, -1))
    weights = torch.cat([torch.zeros(1), logits[1:].double().exp()])
    assert_draws(got.tokens, weights, numbers(3000))
    assert got.log_kept_mass[0].item() == pytest.approx(
        logits[1:].double().logsumexp(0).item() - 5000, rel=1e-6
    )


def test_topk_and_entropy_are_those_of_topk_score():
    logits = torch.randn(5, 3000).bfloat16()
    for temperature in (1.0, 0.4):
        score = pyttc.topk_score(logits, 33, temperature=temperature)
        for kwargs in ({}, {"top_p": 0.3}, {"mask": random_mask(5, 3000)}, {"top_k": 700}):
            got = call(logits, topk=33, temperature=temperature, **kwargs)
            assert torch.equal(got.topk_indices, score.indices)
            assert torch.equal(got.topk_logprobs, score.logprobs)
            assert torch.equal(got.entropy, score.entropy)


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_seed_0_is_a_seed_and_no_topk_is_asked_for(impl):
    logits, ids = torch.randn(5, 100), torch.arange(5)
    drawn = pyttc.sample(logits, seed=0, path_ids=ids, positions=ids, impl=impl)
    assert drawn.valid.all() and drawn.topk_indices.shape == drawn.topk_logprobs.shape == (5, 0)
    assert torch.equal(drawn.tokens, pyttc.sample(logits, seed=0, path_ids=ids, positions=ids)[0])


def test_topk_does_not_change_the_draw():
    logits = torch.randn(6, 9000)
    for kwargs in ({}, {"top_p": 0.9}, {"min_p": 0.2}, {"top_k": 5}):
        want = call(logits, **kwargs)
        for topk in (1, 20, 1024):
            assert all(map(torch.equal, want[:6], call(logits, topk=topk, **kwargs)[:6]))


@pytest.mark.parametrize("temperature", [1e-310, 1e-40, 1e-5, 1e6, 1e35, 1e300])
def test_any_temperature(temperature):
    for kind in ("normal", "two-valued", "offset", "float max", "holes"):
        logits = row(kind, 3000)
        for kwargs in ({}, {"top_p": 0.6}, {"min_p": 0.5}, {"top_k": 10}):
            got = call(logits, 500, temperature=temperature, **kwargs)
            want = pyttc.sample(
                logits[None], seed=7, path_ids=torch.zeros(1, dtype=torch.long),
                positions=torch.full((1,), 5), temperature=temperature, impl="reference", **kwargs
            )  # fmt: skip
            assert got.tokens[0] == want.tokens[0]
            assert torch.stack(got[1:5]).isfinite().all() and got.valid.all()


# Bits do not depend on anything but the row and its own parameters.

axis = settings(max_examples=EXAMPLES, derandomize=True)
VOCABULARIES = st.sampled_from([1, 5, 111, 256, 300, 5000, 40000])


def case(rows, v, seed):
    """Logits and keyword arguments of a call, varied by `seed`."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, v, generator=g) * [0.1, 1.0, 8.0][seed % 3]
    kwargs = {
        "seed": torch.randint(0, 2**40, (rows,), generator=g),
        "path_ids": torch.randint(0, 2**32, (rows,), generator=g),
        "positions": torch.randint(0, 2**20, (rows,), generator=g),
        "temperature": torch.rand(rows, generator=g) * (torch.rand(rows, generator=g) > 0.1),
        "top_k": torch.randint(-1, 60, (rows,), generator=g) * (seed // 3 % 2),
        "top_p": torch.rand(rows, generator=g) if seed // 6 % 2 else torch.ones(rows),
        "min_p": torch.rand(rows, generator=g) * 0.1 * (seed // 12 % 2),
    }
    if seed // 24 % 2:
        kwargs["mask"] = random_mask(rows, v, seed)
    return logits.to(DTYPES[seed % 3]), {**kwargs, "topk": min(v, seed % 9)}


def select(kwargs, index):
    return {k: v[index] if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@axis
@given(VOCABULARIES, st.integers(1, 6), st.integers(0, 99_999))
def test_bits_do_not_depend_on_the_batch(v, rows, seed):
    logits, kwargs = case(rows, v, seed)
    together = pyttc.sample(logits, **kwargs)
    for i in range(rows):
        one = slice(i, i + 1)
        assert same([t[one] for t in together], pyttc.sample(logits[one], **select(kwargs, one)))


@axis
@given(VOCABULARIES, st.integers(2, 6), st.integers(0, 99_999))
def test_bits_do_not_depend_on_the_order_of_rows(v, rows, seed):
    logits, kwargs = case(rows, v, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    want = [t[order] for t in pyttc.sample(logits, **kwargs)]
    assert same(want, pyttc.sample(logits[order], **select(kwargs, order)))


@axis
@given(VOCABULARIES, st.integers(0, 99_999))
def test_bits_do_not_depend_on_the_neighbours(v, seed):
    logits, kwargs = case(3, v, seed)
    alone = [t[1] for t in pyttc.sample(logits, **kwargs)]
    for neighbour in (torch.nan, torch.inf, -torch.inf, 60000.0, logits[1].clone()):
        logits[0] = logits[2] = neighbour
        assert same(alone, [t[1] for t in pyttc.sample(logits, **kwargs)])


@axis
@given(VOCABULARIES, st.integers(1, 3), st.integers(1, 9), st.integers(0, 99_999))
def test_bits_do_not_depend_on_strides(v, rows, gap, seed):
    logits, kwargs = case(rows, v, seed)
    buffer = torch.full((rows, v + gap), torch.nan, dtype=logits.dtype)
    view = buffer[:, gap // 2 : gap // 2 + v]
    view.copy_(logits)
    spread = {
        k: torch.stack([t] * 2, -1)[..., 0]
        for k, t in kwargs.items()
        if torch.is_tensor(t) and t.dim() == 1
    }
    assert same(pyttc.sample(logits, **kwargs), pyttc.sample(view, **{**kwargs, **spread}))


@axis
@given(VOCABULARIES, st.integers(1, 3), st.integers(2, 5), st.integers(0, 99_999))
def test_bits_do_not_depend_on_threads(v, rows, threads, seed):
    logits, kwargs = case(rows, v * 3 if v > 9000 else v, seed)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = pyttc.sample(logits, **kwargs)
        torch.set_num_threads(threads)
        assert same(one, pyttc.sample(logits, **kwargs))
    finally:
        torch.set_num_threads(before)


@axis
@given(VOCABULARIES, st.integers(2, 40), st.integers(0, 99_999))
def test_draws_from_one_row_are_those_from_its_copies(v, n, seed):
    logits, kwargs = case(1, v, seed)
    own = {"path_ids": torch.arange(n), "positions": torch.arange(n) * 7}
    kwargs = {**select(kwargs, torch.zeros(n, dtype=torch.long)), **own}
    shared = pyttc.sample(logits.expand(n, v), **kwargs)
    assert same(shared, pyttc.sample(logits.repeat(n, 1), **kwargs))
    for i in (0, n - 1):
        one = slice(i, i + 1)
        assert same([t[one] for t in shared], pyttc.sample(logits, **select(kwargs, one)))


@axis
@given(VOCABULARIES, st.integers(0, 99_999))
def test_numbers_and_tensors_say_the_same(v, seed):
    logits, kwargs = case(4, v, seed)
    names = ("seed", "temperature", "top_k", "top_p", "min_p")
    value = {name: kwargs[name][0].item() for name in names}
    tensors = {name: kwargs[name][:1].expand(4) for name in names}
    want = pyttc.sample(logits, **{**kwargs, **value})
    assert same(want, pyttc.sample(logits, **{**kwargs, **tensors}))
    assert same(want, pyttc.sample(logits, **{**kwargs, **value, "top_k": tensors["top_k"]}))


def test_a_draw_is_a_function_of_the_path_alone():
    logits = torch.zeros(1, 50000)

    def draw(seed=1, path=1, position=1):
        return pyttc.sample(
            logits, seed=seed, path_ids=torch.tensor([path]), positions=torch.tensor([position])
        ).tokens.item()

    draws = {draw(), draw(seed=2), draw(seed=1 + 2**32), draw(path=2), draw(position=2)}
    draws |= {draw(path=2**32 - 1), draw(position=2**32 - 1)}
    assert len(draws) == 7
    assert draw() == math.floor(uniforms(1, torch.tensor(1), torch.tensor(1)).item() * 50000)
