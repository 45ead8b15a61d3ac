"""copy_pages against a loop over pairs that reads a snapshot, bit for bit, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttc import copy_pages

from .common import EXAMPLES, same, spread, threads
from .test_store_kv import DTYPES, LAYOUTS

checked = settings(max_examples=EXAMPLES, derandomize=True)


def pool(shape, dtype=torch.float32, layout="pages", seed=0):
    """k_pages and v_pages, [pages, page_size, Hkv, D] or with layers first, in one of several layouts."""
    make = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, *shape, generator=make).to(dtype)
    k[..., 0, :, :, 0] = float("nan")
    if layout == "interleaved":
        memory = torch.stack((k, v), -4)
        return memory.unbind(-4)
    if layout == "heads":
        memory = torch.stack((k, v)).transpose(-2, -3).contiguous().transpose(-2, -3)
        return memory.unbind(0)
    return (spread(k), spread(v)) if layout == "spread" else (k, v)


def call(m, shape, dtype=torch.float32, layout="pages", seed=0, index=torch.int64):
    """Pairs in which pages are sources and destinations at once, and some are left out."""
    k_pages, v_pages = pool(shape, dtype, layout, seed)
    make = torch.Generator().manual_seed(seed)
    pages = shape[-4]
    dst = torch.randperm(pages, generator=make)[:m]
    src = torch.randint(0, pages, dst.shape, generator=make)
    unused = torch.rand(dst.shape, generator=make) < 0.2
    src[unused & (src % 2 == 0)] = -7
    dst[unused] = -1
    return k_pages, v_pages, src.to(index), dst.to(index)


def sample_inputs():
    shapes = [(6, 3, 2, 8), (3, 16, 1, 16), (2, 5, 4, 3, 8), (5, 1, 1, 1), (1, 4, 2, 2, 24)]
    calls = [(call(4, shape, dtype), {}) for shape in shapes for dtype in DTYPES]
    calls += [(call(5, (3, 6, 2, 3, 8), torch.bfloat16, layout), {}) for layout in LAYOUTS]
    calls += [(call(5, (6, 4, 2, 8), torch.float32, layout), {}) for layout in LAYOUTS]
    k_pages, _, src, dst = call(5, (6, 4, 2, 8))
    calls.append(((k_pages, pool((6, 4, 2, 8), layout="spread")[1], src, dst), {}))
    calls.append((call(5, (6, 4, 2, 8), index=torch.int32), {}))
    calls.append((call(0, (6, 4, 2, 8)), {}))
    calls.append((call(3, (2, 6, 4, 0, 8)), {}))
    calls.append((call(3, (0, 4, 4, 2, 8)), {}))
    calls.append((call(5, (6, 4, 2, 8), torch.float64), {"impl": "reference"}))
    calls.append((call(5, (6, 4, 2, 8)), {"impl": "native"}))
    return calls


def invalid_calls():
    k_pages, v_pages = pool((6, 3, 2, 8))
    src, dst = torch.tensor([0, 1, 1]), torch.tensor([2, 3, 4])
    wide = spread(k_pages, last=2)
    expanded = k_pages[:1].expand(6, 3, 2, 8)
    both = torch.zeros(7, 3, 2, 8)
    return [
        ((k_pages[0], v_pages[0], src, dst), {}, "k_pages"),
        ((k_pages[None, None], v_pages[None, None], src, dst), {}, "k_pages"),
        ((k_pages.int(), v_pages.int(), src, dst), {}, "k_pages"),
        ((k_pages, v_pages[:5], src, dst), {}, "v_pages"),
        ((k_pages, v_pages[None], src, dst), {}, "v_pages"),
        ((k_pages, v_pages.half(), src, dst), {}, "v_pages"),
        ((k_pages, v_pages.to("meta"), src, dst), {}, "v_pages"),
        ((k_pages, v_pages, src.short(), dst), {}, "src"),
        ((k_pages, v_pages, src, dst.double()), {}, "dst"),
        ((k_pages, v_pages, src[None], dst[None]), {}, "src"),
        ((k_pages, v_pages, src, dst[:2]), {}, "dst"),
        ((k_pages, v_pages, src.to("meta"), dst), {}, "src"),
        ((k_pages, v_pages, src - 1, dst), {}, "src"),
        ((k_pages, v_pages, src + 5, dst), {}, "src"),
        ((k_pages, v_pages, src, dst - 4), {}, "dst"),
        ((k_pages, v_pages, src, dst + 2), {}, "dst"),
        ((k_pages, v_pages, src, dst + 2**40), {}, "dst"),
        ((k_pages, v_pages, src, torch.tensor([2, 3, 2])), {}, "dst"),
        ((k_pages[:1], v_pages[:1], src[1:2], dst[:1] - 2), {}, "src"),
        ((wide, v_pages, src, dst), {}, "k_pages"),
        ((k_pages[..., ::4], v_pages[..., ::4], src, dst), {}, "k_pages"),
        ((k_pages, wide, src, dst), {}, "v_pages"),
        ((expanded, v_pages, src, dst), {}, "k_pages"),
        ((k_pages, expanded, src, dst), {}, "v_pages"),
        ((k_pages, k_pages, src, dst), {}, "v_pages"),
        ((both[:6], both[1:], src, dst), {}, "v_pages"),
        ((k_pages, v_pages, src, None), {}, "dst"),
    ]


def assert_as_by_loop(args, impl=None):
    k_pages, v_pages, src, dst = args
    expected = []
    for pages in (k_pages, v_pages):
        snapshot, after = pages.clone(), pages.clone()
        for a, b in zip(src.tolist(), dst.tolist(), strict=True):
            if b >= 0:
                after[..., b, :, :, :] = snapshot[..., a, :, :, :]
        expected.append(after)
    copy_pages(*args, impl=impl)
    assert same(k_pages, expected[0]) and same(v_pages, expected[1])


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_samples(impl):
    for args, kwargs in sample_inputs():
        assert_as_by_loop(args, kwargs.get("impl", impl))


@checked
@given(
    st.integers(0, 2**30),
    st.integers(0, 9),
    st.tuples(*(st.integers(1, n) for n in (3, 9, 5, 3, 20))),
    st.booleans(),
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["native", "reference"]),
)
def test_any_layout(seed, m, shape, layers, dtype, layout, impl):
    assert_as_by_loop(call(m, shape if layers else shape[1:], dtype, layout, seed), impl)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pairs", ["fork", "rotate", "swap"])
def test_many_pages_whatever_the_threads(layout, pairs):
    pages = torch.arange(128)
    src, dst = {
        "fork": (torch.full((100,), 3), pages[20:120]),
        "rotate": (pages, pages.roll(1)),
        "swap": (pages, pages ^ 1),
    }[pairs]
    results = []
    for n in (1, 2, 4):
        k_pages, v_pages = pool((2, 128, 8, 2, 32), torch.bfloat16, layout)
        with threads(n):
            assert_as_by_loop((k_pages, v_pages, src, dst))
        results.append((k_pages, v_pages))
    assert all(same(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("d", [96, 90])  # whole cache lines in every layout, or not
def test_copies_larger_than_the_caches(layout, d):
    k_pages, v_pages = pool((2, 100, 16, 8, d), torch.bfloat16, layout)
    assert_as_by_loop((k_pages, v_pages, torch.arange(100), torch.arange(100).roll(37)))


def test_offsets_are_64_bit():
    memory = torch.empty(2**31 + 64, dtype=torch.float16)  # untouched pages of it take no memory
    k_pages = memory.as_strided((2, 1, 1, 16), (2**31, 16, 16, 1))
    k_pages[0] = torch.randn(1, 1, 16)
    copy_pages(k_pages, torch.zeros(2, 1, 1, 16).half(), torch.tensor([0]), torch.tensor([1]))
    assert same(memory[2**31 : 2**31 + 16], memory[:16])


def test_it_is_seen_by_autograd():
    k_pages, v_pages, src, dst = call(4, (6, 3, 2, 8))
    weight = torch.ones(8, requires_grad=True)
    product = (weight * v_pages).sum()
    copy_pages(k_pages, v_pages, src, dst)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
