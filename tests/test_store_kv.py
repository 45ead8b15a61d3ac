"""store_kv against a loop over rows, bit for bit, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttc import store_kv

from .common import EXAMPLES, same, spread, threads

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
checked = settings(max_examples=EXAMPLES, derandomize=True)


def pool(shape, dtype=torch.float32, layout="pages"):
    """k_pages and v_pages full of NaN, [pages, page_size, Hkv, D] in one of several memory layouts."""
    pages, page_size, heads, d = shape
    if layout == "interleaved":  # keys and values of a page side by side
        memory = torch.full((pages, 2, page_size, heads, d), float("nan"), dtype=dtype)
        return memory[:, 0], memory[:, 1]
    if layout == "heads":  # heads before the slots of a page
        memory = torch.full((2, pages, heads, page_size, d), float("nan"), dtype=dtype)
        return tuple(memory.transpose(2, 3))
    if layout == "spread":
        return tuple(spread(torch.full(shape, float("nan"), dtype=dtype)) for _ in range(2))
    return tuple(torch.full((2, *shape), float("nan"), dtype=dtype))


LAYOUTS = ("pages", "interleaved", "heads", "spread")


def rows(n, heads, d, dtype=torch.float32, seed=0):
    make = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, n, heads, d, generator=make).to(dtype)
    return k, v, make


def call(n, shape, dtype=torch.float32, layout="pages", seed=0, strided=False, index=torch.int64):
    k, v, make = rows(n, *shape[2:], dtype, seed)
    if strided:
        k, v = spread(k), spread(v)
    # from -1, so that rows are left out; from a small range, so that slots are named twice
    slots = torch.randint(-1, shape[0] * shape[1], (n,), generator=make).to(index)
    return k, v, *pool(shape, dtype, layout), slots


def sample_inputs():
    shapes = [(4, 3, 2, 8), (1, 16, 1, 16), (5, 1, 3, 1), (3, 4, 2, 64)]
    calls = [
        (call(n, shape, dtype), {}) for shape in shapes for n in (1, 7) for dtype in DTYPES[:2]
    ]
    calls += [(call(9, (4, 4, 2, 8), dtype, layout), {}) for dtype in DTYPES for layout in LAYOUTS]
    calls.append((call(6, (4, 3, 2, 8), strided=True, index=torch.int32), {}))
    calls.append((call(0, (4, 3, 2, 8)), {}))
    calls.append((call(5, (4, 3, 0, 8)), {}))
    calls.append((call(5, (4, 3, 2, 8), torch.float64), {"impl": "reference"}))
    calls.append((call(5, (4, 3, 2, 8)), {"impl": "native"}))
    return calls


def invalid_calls():
    k, v, k_pages, v_pages, slots = call(4, (3, 5, 2, 8), seed=1)
    slots = torch.tensor([0, 4, 9, -1])
    high, low = slots.clone(), slots.clone()
    high[2], low[3] = 15, -2
    wide = spread(k, last=2)
    wide_pages = spread(k_pages, last=2)
    expanded = k_pages[:1].expand(3, 5, 2, 8)
    part = k_pages.flatten(0, 1)[3:7]
    both = torch.zeros(4, 5, 2, 8)
    return [
        ((k[0], v[0], k_pages, v_pages, slots), {}, "k"),
        ((k.long(), v, k_pages, v_pages, slots), {}, "k"),
        ((k, v.half(), k_pages, v_pages, slots), {}, "v"),
        ((k, v[:3], k_pages, v_pages, slots), {}, "v"),
        ((k, v, k_pages[0], v_pages, slots), {}, "k_pages"),
        ((k, v, k_pages[:, :, :1], v_pages, slots), {}, "k_pages"),
        ((k, v, k_pages.half(), v_pages, slots), {}, "k_pages"),
        ((k, v, k_pages, v_pages[:2], slots), {}, "v_pages"),
        ((k, v, k_pages, v_pages.bfloat16(), slots), {}, "v_pages"),
        ((k, v, k_pages, v_pages, slots.float()), {}, "slots"),
        ((k, v, k_pages, v_pages, slots[:3]), {}, "slots"),
        ((k, v, k_pages, v_pages, slots[None]), {}, "slots"),
        ((k, v, k_pages, v_pages, high), {}, "slots"),
        ((k, v, k_pages, v_pages, low), {}, "slots"),
        ((k, v, k_pages, v_pages, slots + 2**40), {}, "slots"),
        ((k, v, k_pages, v_pages, slots.to("meta")), {}, "slots"),
        ((k, v, k_pages, v_pages.to("meta"), slots), {}, "v_pages"),
        ((wide, v, k_pages, v_pages, slots), {}, "k"),
        ((k, wide, k_pages, v_pages, slots), {}, "v"),
        ((k, v, wide_pages, v_pages, slots), {}, "k_pages"),
        ((k, v, k_pages, wide_pages, slots), {}, "v_pages"),
        ((*(t[..., ::4] for t in (k, v, k_pages, v_pages)), slots), {}, "k"),
        ((k, v, expanded, v_pages, slots), {}, "k_pages"),
        ((k, v, k_pages, k_pages, slots), {}, "v_pages"),
        ((k, v, both[:3], both[1:], slots), {}, "v_pages"),
        ((part, v, k_pages, v_pages, slots), {}, "k"),
        ((k, part, k_pages, v_pages, slots), {}, "v"),
        ((k, v, k_pages, v_pages, None), {}, "slots"),
    ]


def by_loop(k, v, k_pages, v_pages, slots):
    for n, slot in enumerate(slots.tolist()):
        if slot >= 0:
            k_pages[divmod(slot, k_pages.shape[1])] = k[n]
            v_pages[divmod(slot, k_pages.shape[1])] = v[n]


def assert_as_by_loop(args, impl=None):
    k, v, k_pages, v_pages, slots = args
    expected = k_pages.clone(), v_pages.clone()
    by_loop(k, v, *expected, slots)
    before = k.clone(), v.clone(), slots.clone()
    store_kv(*args, impl=impl)
    assert same(k_pages, expected[0]) and same(v_pages, expected[1])
    assert same(k, before[0]) and same(v, before[1]) and same(slots, before[2])


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_samples(impl):
    for args, kwargs in sample_inputs():
        assert_as_by_loop(args, kwargs.get("impl", impl))


@checked
@given(
    st.integers(0, 2**30),
    st.integers(0, 40),
    st.tuples(*(st.integers(1, n) for n in (6, 5, 3, 20))),
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    st.booleans(),
    st.sampled_from(["native", "reference"]),
)
def test_any_layout(seed, n, shape, dtype, layout, strided, impl):
    assert_as_by_loop(call(n, shape, dtype, layout, seed, strided), impl)


@pytest.mark.parametrize("page_size", [1, 16, 24])
def test_the_last_row_of_a_slot_stays_whatever_the_threads(page_size):
    shape = (96 // page_size, page_size, 2, 128)
    k, v, make = rows(4000, 2, 128)
    slots = torch.randint(0, 96, (4000,), generator=make)
    results = []
    for n in (1, 2, 3, 4, 16):
        pages = pool(shape)
        with threads(n):
            assert_as_by_loop((k, v, *pages, slots))
        results.append(pages)
    assert all(same(a, b) for pages in results[1:] for a, b in zip(pages, results[0], strict=True))


def test_offsets_are_64_bit():
    pages = torch.empty(1, 1, 1, 16, dtype=torch.float16).expand(2, 1, 1, 16)
    memory = torch.empty(2**31 + 64, dtype=torch.float16)  # untouched pages of it take no memory
    k_pages = memory.as_strided(pages.shape, (2**31, 16, 16, 1))
    v_pages = torch.zeros_like(pages).contiguous()
    k = torch.randn(1, 1, 16).half()
    store_kv(k, k.clone(), k_pages, v_pages, torch.tensor([1]))
    assert same(memory[2**31 : 2**31 + 16], k.flatten())


def test_it_is_seen_by_autograd():
    k, v, k_pages, v_pages, slots = call(3, (2, 4, 1, 8))
    weight = torch.ones(8, requires_grad=True)
    product = (weight * k_pages).sum()
    store_kv(k, v, k_pages, v_pages, slots)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
