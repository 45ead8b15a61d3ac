"""shared_prefix_attention: right against float64, and the same bits as the op over trees."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyttc

from .common import EXAMPLES
from .forests import DIMS, DTYPES, HEADS, LENGTHS, Forest, assert_close, same

SEEDS = st.integers(0, 2**32 - 1)
axis = settings(max_examples=EXAMPLES, derandomize=True)


def draw(seed, dtype=None, *, heads=None, dim=None, groups=3, paths=5, sizes=LENGTHS):
    """(args, kwargs): tokens past a length are NaN."""
    rng, gen = random.Random(seed), torch.Generator().manual_seed(seed)
    dtype = dtype or rng.choice(DTYPES)
    hq, hkv = heads or rng.choice(HEADS)
    d = dim or rng.choice(DIMS)
    g, n, p, s = rng.randint(1, groups), rng.randint(1, paths), rng.choice(sizes), rng.choice(sizes)
    prefix_lens = torch.tensor([rng.choice([p, rng.randint(0, p)]) for _ in range(g)])
    suffix_lens = torch.tensor(
        [[rng.choice([s, rng.randint(0, s)]) for _ in range(n)] for _ in range(g)]
    )
    suffix_lens = suffix_lens.to(rng.choice([torch.int32, torch.int64]))

    def tokens(*shape, lens):
        t = torch.randn(*shape, hkv, d, generator=gen)
        past = torch.arange(shape[-1]) >= lens.unsqueeze(-1)
        return t.masked_fill(past[..., None, None], torch.nan).to(dtype)

    q = (torch.randn(g, n, hq, d, generator=gen) * 2).to(dtype)
    k_prefix, v_prefix = (tokens(g, p, lens=prefix_lens) for _ in range(2))
    k_suffix, v_suffix = (tokens(g, n, s, lens=suffix_lens) for _ in range(2))
    kwargs = {"prefix_lens": prefix_lens}
    if rng.random() < 0.5:
        kwargs["scale"] = rng.uniform(-0.5, 0.5)
    return (q, k_prefix, v_prefix, k_suffix, v_suffix, suffix_lens), kwargs


def as_forest(args, kwargs):
    """The same paths as a tree of two levels."""
    q, k_prefix, v_prefix, k_suffix, v_suffix, suffix_lens = args
    parents, k, v, leaves = [], [], [], []
    for g, p in enumerate(kwargs["prefix_lens"].tolist()):
        root = len(parents)
        parents.append(-1)
        k.append(k_prefix[g, :p])
        v.append(v_prefix[g, :p])
        for n, s in enumerate(suffix_lens[g].tolist()):
            leaves.append(len(parents))
            parents.append(root)
            k.append(k_suffix[g, n, :s])
            v.append(v_suffix[g, n, :s])
    return Forest(parents, k, v, leaves, q.flatten(0, 1))


def wide(args):
    return (*(t.double() for t in args[:5]), args[5])


def compare(args, kwargs):
    got = pyttc.shared_prefix_attention(*args, **kwargs)
    torchs = as_forest(args, kwargs).torchs(scale=kwargs.get("scale"))
    assert_close(
        got,
        tuple(t.view_as(like) for t, like in zip(torchs, got, strict=True)),
        pyttc.shared_prefix_attention(*wide(args), **kwargs, impl="reference"),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("heads", HEADS)
def test_matches_float64(dtype, dim, heads):
    for seed in range(3):
        compare(*draw(seed, dtype, heads=heads, dim=dim))


@axis
@given(SEEDS)
def test_matches_float64_anywhere(seed):
    compare(*draw(seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_size_of_the_speed_goal(dtype):
    args, kwargs = draw(1, dtype, heads=(14, 2), dim=64, groups=1, paths=1, sizes=[1200])
    compare(
        (
            args[0].repeat(1, 64, 1, 1),
            *args[1:3],
            *(t.repeat(1, 64, *[1] * (t.dim() - 2)) for t in args[3:]),
        ),
        kwargs,
    )


def test_without_prefix_lens_all_of_the_prefix_is_read():
    (q, kp, vp, ks, vs, lens), _ = draw(3, torch.float32)
    kp, vp = torch.randn_like(kp), torch.randn_like(vp)
    full = torch.full((q.shape[0],), kp.shape[1])
    with_lens = pyttc.shared_prefix_attention(q, kp, vp, ks, vs, lens, prefix_lens=full)
    assert same(pyttc.shared_prefix_attention(q, kp, vp, ks, vs, lens), with_lens)


@pytest.mark.parametrize("impl", [None, "reference"])
@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 0, 5, 4), (2, 3, 0, 0), (2, 3, 5, 4)])
def test_empty(impl, shape):
    g, n, p, s = shape
    out, lse = pyttc.shared_prefix_attention(
        torch.randn(g, n, 4, 16),
        *torch.full((2, g, p, 2, 16), torch.nan),
        *torch.full((2, g, n, s, 2, 16), torch.nan),
        torch.zeros(g, n, dtype=torch.int32),
        prefix_lens=torch.zeros(g, dtype=torch.int64),
        impl=impl,
    )
    assert out.shape == (g, n, 4, 16) and lse.shape == (g, n, 4)
    assert (out == 0).all() and (lse == -torch.inf).all()


# Bits: one test an axis; the axes of trees are in test_prefix_tree_attention.py.


@axis
@given(SEEDS)
def test_bits_are_those_of_the_tree(seed):
    args, kwargs = draw(seed)
    forest = as_forest(args, kwargs)
    rest = {"scale": kwargs["scale"]} if "scale" in kwargs else {}
    out, lse = pyttc.shared_prefix_attention(*args, **kwargs)
    assert same((out.flatten(0, 1), lse.flatten(0, 1)), forest.run(16, **rest))


@axis
@given(SEEDS)
def test_bits_do_not_depend_on_where_the_prefix_ends(seed):
    rng, gen = random.Random(seed), torch.Generator().manual_seed(seed)
    (q, *_), kwargs = draw(seed, groups=1, paths=4)
    n, d = q.shape[1], q.shape[3]
    hkv = rng.choice([h for h in range(1, q.shape[2] + 1) if q.shape[2] % h == 0])
    shared, length = rng.choice(LENGTHS), rng.choice(LENGTHS)
    common = (
        torch.randn(2, 1, 1, shared, hkv, d, generator=gen).to(q.dtype).expand(2, 1, n, -1, -1, -1)
    )
    own = torch.randn(2, 1, n, length, hkv, d, generator=gen).to(q.dtype)
    k, v = torch.cat([common, own], dim=3)
    results = []
    for cut in {0, shared, rng.randint(0, shared), rng.randint(0, shared)}:
        lens = torch.full((1, n), shared + length - cut)
        results.append(
            pyttc.shared_prefix_attention(
                q, k[:, 0, :cut], v[:, 0, :cut], k[:, :, cut:], v[:, :, cut:], lens
            )
        )
    assert all(same(results[0], other) for other in results[1:])


@axis
@given(SEEDS)
def test_bits_do_not_depend_on_batch_and_order(seed):
    rng = random.Random(seed)
    (q, kp, vp, ks, vs, lens), kwargs = draw(seed)
    out, lse = pyttc.shared_prefix_attention(q, kp, vp, ks, vs, lens, **kwargs)
    g = [rng.randrange(q.shape[0]) for _ in range(rng.randint(1, 4))]
    n = [rng.randrange(q.shape[1]) for _ in range(rng.randint(1, 9))]
    kwargs["prefix_lens"] = kwargs["prefix_lens"][g]
    q, ks, vs, lens = (t[g][:, n] for t in (q, ks, vs, lens))
    got = pyttc.shared_prefix_attention(q, kp[g], vp[g], ks, vs, lens, **kwargs)
    assert same((out[g][:, n], lse[g][:, n]), got)


@axis
@given(SEEDS)
def test_bits_do_not_depend_on_strides(seed):
    args, kwargs = draw(seed)

    def spread(t, gap):
        order = [2, 0, 1, *range(3, t.dim())]
        memory = torch.full([t.shape[i] + gap for i in order], torch.nan, dtype=t.dtype)
        if t.dim() > 3:
            memory = memory.repeat(*[1] * (t.dim() - 1), 2)
        back = sorted(range(t.dim()), key=lambda i: order[i])
        view = memory.permute(back)[tuple(slice(n) for n in t.shape)]
        return view.copy_(t)

    lens = torch.full((*reversed(args[5].shape), 2), 10**6)[..., 0].T.copy_(args[5])
    moved = (*(spread(t, gap) for t, gap in zip(args[:5], (1, 1, 2, 1, 2), strict=True)), lens)
    assert moved[0].stride() != args[0].stride()
    expected = pyttc.shared_prefix_attention(*args, **kwargs)
    assert same(expected, pyttc.shared_prefix_attention(*moved, **kwargs))


@axis
@given(SEEDS, st.integers(2, 5))
def test_bits_do_not_depend_on_threads(seed, threads):
    args, kwargs = draw(seed)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results.append(pyttc.shared_prefix_attention(*args, **kwargs))
    finally:
        torch.set_num_threads(before)
    assert same(*results)


def sample_inputs():
    calls = [draw(seed, DTYPES[seed % 3]) for seed in range(24)]
    for seed in range(0, 24, 4):
        calls[seed][1]["prefix_lens"] = None
        calls[seed] = (tuple(t.nan_to_num(0.0) for t in calls[seed][0]), calls[seed][1])
    (q, kp, vp, ks, vs, lens), kwargs = draw(30, torch.float32)
    ks = ks.transpose(2, 3).contiguous().transpose(2, 3)
    calls.append(((q, kp, vp, ks, vs, lens), kwargs))
    return calls


def invalid_calls():
    (q, kp, vp, ks, vs, lens), kwargs = draw(
        7, torch.float32, heads=(4, 2), dim=16, sizes=[6], groups=2
    )
    prefix_lens = kwargs["prefix_lens"]
    base = [q, kp, vp, ks, vs, lens]
    names = ["q", "k_prefix", "v_prefix", "k_suffix", "v_suffix", "suffix_lens"]
    calls = []

    def add(name, value, blamed=None, **more):
        args = [value if n == name else t for n, t in zip(names, base, strict=True)]
        calls.append((tuple(args), {"prefix_lens": prefix_lens, **more}, blamed or name))

    for name, tensor in zip(names[1:], base[1:], strict=True):
        add(name, tensor[..., None])
        add(name, tensor[0])
        add(name, tensor.to("meta"))
        add(name, tensor.to(torch.float64))
        add(name, tensor.to(torch.int8))
    for name, tensor in zip(names[1:5], base[1:5], strict=True):
        add(name, tensor[..., :8])
        add(name, tensor[..., [0, 0, 0], :])
        add(name, tensor.transpose(-1, -2).contiguous().transpose(-1, -2))
    add("q", q[..., :12])
    add("q", q[..., :8])
    add("q", q.int())
    add("q", q[0])
    add("q", q[:, :, :3], "k_prefix")
    add("q", q.transpose(-1, -2).contiguous().transpose(-1, -2))
    add("suffix_lens", lens + 100)
    add("suffix_lens", lens - 100)
    add("q", q, "prefix_lens", prefix_lens=prefix_lens + 100)
    add("q", q, "prefix_lens", prefix_lens=prefix_lens - 100)
    add("q", q, "prefix_lens", prefix_lens=prefix_lens.float())
    add("q", q, "prefix_lens", prefix_lens=prefix_lens[None])
    add("q", q, "prefix_lens", prefix_lens=prefix_lens.to("meta"))
    add("q", q, "scale", scale=float("nan"))
    add("q", q, "impl", impl="fast")
    return calls


@pytest.mark.parametrize("case", range(len(invalid_calls())))
def test_refuses(case):
    args, kwargs, name = invalid_calls()[case]
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
        pyttc.shared_prefix_attention(*args, **kwargs)
    if "impl" not in kwargs:
        with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
            pyttc.shared_prefix_attention(*args, **kwargs, impl="reference")
