"""merge_states against the reference in float64, its laws, and the independence of rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttc import merge_states

from .common import EXAMPLES, same, spread, threads

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INF, NAN = float("inf"), float("nan")
checked = settings(max_examples=EXAMPLES, derandomize=True)


def states(shape, dtype=torch.float32, seed=0, scale=4.0):
    """Two states, some empty; what an empty one holds is NaN."""
    make = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(2):
        lse = torch.randn(shape[:-1], generator=make) * scale
        lse[torch.rand(shape[:-1], generator=make) < 0.2] = -INF
        out = torch.randn(shape, generator=make).to(dtype)
        parts += [out.masked_fill_((lse == -INF)[..., None], NAN), lse]
    return tuple(parts)


def sample_inputs():
    shapes = [(16,), (0,), (3, 1), (5, 7), (4, 64), (2, 3, 128), (0, 8), (3, 0), (2, 2, 3, 40)]
    calls = [(states(shape, dtype), {}) for shape in shapes for dtype in DTYPES]
    calls.append((tuple(spread(t) for t in states((3, 5, 33))), {}))
    calls.append((tuple(spread(t) for t in states((4, 6, 16), torch.bfloat16)), {}))
    a, lse_a, b, lse_b = states((3, 5, 12))
    calls.append(((a, lse_a, spread(b), spread(lse_b)), {}))
    out, lse = torch.linspace(-3, 3, 120).view(3, 5, 8), torch.linspace(-2, 2, 15).view(3, 5)
    calls.append(((out, lse, out, lse[:, :1].expand(3, 5)), {}))
    calls.append((states((2, 9)), {"impl": "native"}))
    calls.append(((*(t.double() for t in states((2, 9))),), {"impl": "reference"}))
    return calls


def invalid_calls():
    out, lse, _, _ = states((3, 8))
    wide = spread(out, last=2)
    return [
        ((lse[0], lse, out, lse), {}, "out_a"),
        ((out[0, 0], lse, out, lse), {}, "out_a"),
        ((out.long(), lse, out, lse), {}, "out_a"),
        ((out, lse, out.half(), lse), {}, "out_b"),
        ((out, lse, out[:2], lse), {}, "out_b"),
        ((out, lse.half(), out, lse), {}, "lse_a"),
        ((out, lse, out, lse.double()), {}, "lse_b"),
        ((out, lse[:2], out, lse), {}, "lse_a"),
        ((out, lse, out, lse[:, None]), {}, "lse_b"),
        ((wide, lse, out, lse), {}, "out_a"),
        ((out, lse, wide, lse), {}, "out_b"),
        ((out[:, ::4], lse, out[:, ::4], lse), {}, "out_a"),
        ((out, lse, out.to("meta"), lse), {}, "out_b"),
        ((out, lse, out, lse.to("meta")), {}, "lse_b"),
        ((out, lse, out, lse), {"impl": "fastest"}, "impl"),
        ((out, lse, out, None), {}, "lse_b"),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e30])
def test_error_is_at_most_twice_that_of_torch(dtype, scale):
    args = states((257, 96), dtype, seed=1, scale=scale)
    exact = merge_states(*(t.double() for t in args), impl="reference")
    for result, torch_result, truth in zip(
        merge_states(*args), merge_states(*args, impl="reference"), exact, strict=True
    ):
        seen = truth.isfinite()
        assert torch.equal(result.isfinite(), seen)
        error = (result.double() - truth)[seen].abs().max()
        assert error <= 2 * (torch_result.double() - truth)[seen].abs().max()


def test_two_halves_of_an_attention_are_the_whole():
    torch.manual_seed(0)
    scores, values = torch.randn(40, 50).double() * 5, torch.randn(50, 24).double()
    halves = []
    for part in (slice(0, 17), slice(17, 50)):
        out = torch.softmax(scores[:, part], -1) @ values[part]
        halves += [out.float(), torch.logsumexp(scores[:, part], -1).float()]
    out, lse = merge_states(*halves)
    torch.testing.assert_close(out.double(), torch.softmax(scores, -1) @ values, atol=2e-6, rtol=0)
    torch.testing.assert_close(lse.double(), torch.logsumexp(scores, -1), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_is_the_identity_and_nothing_is_empty(dtype):
    out = torch.randn(6, 37).to(dtype)
    lse, nothing = torch.randn(6), torch.full((6,), -INF)
    unread = torch.full_like(out, NAN)
    for args in ((out, lse, unread, nothing), (unread, nothing, out, lse)):
        merged = merge_states(*args)
        assert same(merged[0], out) and same(merged[1], lse)
    merged = merge_states(unread, nothing, unread, nothing)
    assert same(merged[0], torch.zeros_like(out)) and same(merged[1], nothing)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_round_to_even(dtype, impl):
    out_a = torch.arange(0x3C00, 0x3C00 + 37, dtype=torch.int16).view(dtype).expand(2, 37)
    out_b = (out_a.view(torch.int16) + 1).view(dtype)
    out, _ = merge_states(out_a, torch.zeros(2), out_b, torch.zeros(2), impl=impl)
    assert same(out, ((out_a.double() + out_b.double()) / 2).to(dtype))


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_nan_or_inf_in_a_row_stays_there(impl):
    args = states((9, 20), seed=3)
    clean = merge_states(*args, impl=impl)
    for position, value in ((1, NAN), (1, INF), (3, NAN), (3, INF), (0, NAN), (2, INF)):
        for other in (1.0, -INF):
            dirty = [t.clone() for t in args]
            dirty[0][4], dirty[2][4] = 1.0, 1.0
            dirty[1][4], dirty[3][4] = 1.0, 1.0
            dirty[4 - position if position % 2 else 3 - position][4] = other
            dirty[position][4] = value
            out, lse = merge_states(*dirty, impl=impl)
            others = torch.arange(9) != 4
            assert same(out[others], clean[0][others]) and same(lse[others], clean[1][others])
            if position % 2:
                assert out[4].isnan().all() and lse[4].isnan()


@checked
@given(st.integers(0, 2**30), st.integers(1, 70), st.sampled_from(DTYPES))
def test_commutes(seed, d, dtype):
    a, lse_a, b, lse_b = states((7, d), dtype, seed)
    out, lse = merge_states(a, lse_a, b, lse_b)
    swapped, swapped_lse = merge_states(b, lse_b, a, lse_a)
    assert same(out, swapped) and same(lse, swapped_lse)


@checked
@given(st.integers(0, 2**30), st.integers(1, 90), st.integers(1, 70), st.sampled_from(DTYPES))
def test_batch_and_order_do_not_show(seed, rows, d, dtype):
    args = states((rows, d), dtype, seed)
    out, lse = merge_states(*args)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    out_of_order, lse_of_order = merge_states(*(t[order] for t in args))
    assert same(out_of_order, out[order]) and same(lse_of_order, lse[order])
    row = seed % rows
    alone, lse_alone = merge_states(*(t[row] for t in args))
    assert same(alone, out[row]) and same(lse_alone, lse[row])


@checked
@given(st.integers(0, 2**30), st.integers(1, 9), st.integers(1, 40), st.sampled_from(DTYPES))
def test_strides_do_not_show(seed, rows, d, dtype):
    args = states((rows, 3, d), dtype, seed)
    for a, b in zip(merge_states(*args), merge_states(*map(spread, args)), strict=True):
        assert same(a, b) and b.is_contiguous()


@checked
@given(st.integers(0, 2**30), st.integers(60, 300), st.integers(2, 4), st.sampled_from(DTYPES))
def test_threads_do_not_show(seed, rows, n, dtype):
    args = states((rows, 17), dtype, seed)
    with threads(1):
        one = merge_states(*args)
    with threads(n):
        many = merge_states(*args)
    assert same(one[0], many[0]) and same(one[1], many[1])
