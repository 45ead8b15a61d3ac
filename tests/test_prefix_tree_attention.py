"""prefix_tree_attention: right against float64, and the same bits however paths are shared."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyttc

from .common import EXAMPLES, run_below
from .forests import DIMS, DTYPES, HEADS, Forest, assert_close, same

SEEDS = st.integers(0, 2**32 - 1)
axis = settings(max_examples=EXAMPLES, derandomize=True)


def options(seed):
    """Scale, window and softcap, each with an even chance."""
    rng = random.Random(seed)
    drawn = {
        "scale": rng.uniform(-0.5, 0.5),
        "window": rng.choice([1, 2, 63, 64, 65, 100, 1500]),
        "softcap": rng.choice([0.5, 5.0, 50.0]),
    }
    return {name: value for name, value in drawn.items() if rng.random() < 0.5}


def compare(forest, page_size=16, **kwargs):
    assert_close(forest.run(page_size, **kwargs), forest.torchs(**kwargs), forest.exact(**kwargs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("heads", HEADS)
def test_matches_float64(dtype, dim, heads):
    for seed in range(3):
        forest = Forest.draw(seed, dtype, heads=heads, dim=dim, long=seed == 2)
        compare(forest, page_size=[1, 16, 256][seed])


@axis
@given(SEEDS)
def test_matches_float64_with_options(seed):
    forest = Forest.draw(seed, long=seed % 8 == 0)
    compare(forest, random.Random(seed).choice([1, 3, 16, 256]), **options(seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dim_and_group(dtype):
    for i, dim in enumerate(range(16, 257, 8)):
        compare(Forest.draw(i, dtype, heads=(2 * (i % 9 + 1), 2), dim=dim))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_rows(dtype):
    """Kernels take few rows and many by different ways, which must not show in the bits."""
    gen = torch.Generator().manual_seed(0)
    k, v = (torch.randn(100, 1, 32, generator=gen).to(dtype) for _ in range(2))
    q = torch.randn(64, 1, 32, generator=gen).to(dtype)
    forest = Forest([-1], [k], [v], [0] * 64, q)
    compare(forest)
    for rows in range(1, 64):
        part = forest.pick(list(range(rows)))
        assert same(part.run(), tuple(t[:rows] for t in forest.run()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1e-3, 1.0, 30.0, 1e3])
def test_error_is_at_most_twice_that_of_torch(dtype, factor):
    """Root mean square over many rows, from tiny scores to scores where one token takes all."""
    squares = torch.zeros(2, 2, dtype=torch.float64)
    for seed in range(32):
        forest = Forest.draw(seed, dtype, nodes=4, dim=64, heads=(14, 2))
        forest.q = forest.q * factor
        exact = forest.exact()
        for i, result in enumerate((forest.run(), forest.torchs())):
            for j in range(2):
                error = result[j].double() - exact[j]
                squares[i, j] += error.nan_to_num(0.0).square().sum()
    ours, torchs = squares.sqrt()
    assert (ours <= 2 * torchs).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_near_the_largest_number(dtype):
    top, small = torch.finfo(dtype).max, 2.0 ** -(10 if dtype is torch.float16 else 100)
    for seed in range(8):
        forest = Forest.draw(seed, dtype, nodes=4, dim=64)
        forest.v = [(t.abs() / 8).clamp(0.1, 0.9).double().mul(top).to(dtype) for t in forest.v]
        forest.q = forest.q / forest.q.abs().amax() * (top / 8)
        forest.k = [t * small for t in forest.k]
        compare(forest, scale=1 / (top / 8 * small))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("paths", [1, 64])
@pytest.mark.parametrize(("tokens", "window", "infinite"), [(5, None, 0), (70, 5, 65), (69, 4, 65)])
def test_a_value_stays_infinite_beside_what_is_not_there(dtype, paths, tokens, window, infinite):
    """Kernels take tokens in pairs: one outside the path or its window is nothing, not its neighbour."""
    gen = torch.Generator().manual_seed(0)
    k, v = (torch.randn(tokens, 1, 32, generator=gen).to(dtype) for _ in range(2))
    v[infinite] = torch.inf
    q = torch.randn(paths, 1, 32, generator=gen).to(dtype)
    out, _ = Forest([-1], [k], [v], [0] * paths, q).run(window=window)
    assert (out == torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_offsets(dtype):
    """A score is a small difference on a large common part, as with a bias in the keys."""
    for seed in range(8):
        forest = Forest.draw(seed, dtype, nodes=4, dim=64)
        forest.k = [t + 50 for t in forest.k]
        forest.v = [t + 100 for t in forest.v]
        compare(forest)


def test_empty():
    pages = torch.full((3, 4, 1, 16), torch.nan)
    q = torch.randn(4, 2, 16)
    tree = pyttc.PrefixTree([-1, 0, -1], [[], [1], []], [0, 0, 0], [-1, 0, 1, 2], 4)
    for impl in (None, "reference"):
        out, lse = pyttc.prefix_tree_attention(q, pages, pages, tree, impl=impl)
        assert (out == 0).all() and (lse == -torch.inf).all()
    for paths, tree in [
        (0, pyttc.PrefixTree([-1], [[1]], [0], [], 4)),
        (2, pyttc.PrefixTree([], [], [], [-1, -1], 4)),
    ]:
        out, lse = pyttc.prefix_tree_attention(q[:paths], pages, pages, tree)
        assert out.shape == (paths, 2, 16) and (lse == -torch.inf).all() and (out == 0).all()


def test_one_nan_query_touches_no_other_row():
    forest = Forest.draw(5, torch.float32, nodes=1, paths=6)
    forest = Forest([-1], [torch.randn(100, 1, 16)], [torch.randn(100, 1, 16)], [0] * 9, None)
    forest.q = torch.randn(9, 7, 16)
    before = forest.run()
    forest.q[4, 3] = torch.nan
    out, lse = forest.run()
    assert out[4, 3].isnan().all() and lse[4, 3].isnan()
    out[4, 3], lse[4, 3] = before[0][4, 3], before[1][4, 3]
    assert same((out, lse), before)


# Bits: one test an axis.


@axis
@given(SEEDS)
def test_bits_do_not_depend_on_batch(seed):
    forest, kwargs = Forest.draw(seed, long=seed % 16 == 0), options(seed)
    out, lse = forest.run(**kwargs)
    for i in range(len(forest.leaves)):
        assert same((out[i : i + 1], lse[i : i + 1]), forest.pick([i]).run(**kwargs))


@axis
@given(SEEDS)
def test_bits_do_not_depend_on_row_order(seed):
    forest, kwargs = Forest.draw(seed, paths=12), options(seed)
    order = list(range(len(forest.leaves)))
    random.Random(seed).shuffle(order)
    out, lse = forest.run(**kwargs)
    assert same((out[order], lse[order]), forest.pick(order).run(**kwargs))


@axis
@given(SEEDS)
def test_bits_do_not_depend_on_duplicates(seed):
    forest, kwargs = Forest.draw(seed), options(seed)
    rows = [random.Random(seed).randrange(len(forest.leaves)) for _ in range(20)]
    out, lse = forest.run(**kwargs)
    assert same((out[rows], lse[rows]), forest.pick(rows).run(**kwargs))


@axis
@given(SEEDS)
def test_bits_do_not_depend_on_neighbours(seed):
    """What other paths ask and what their tokens hold, be it NaN, is nobody else's business."""
    rng = random.Random(seed)
    forest, kwargs = Forest.draw(seed, nodes=9), options(seed)
    path = rng.randrange(len(forest.leaves))
    before = [t[path] for t in forest.run(**kwargs)]
    mine = forest.line(forest.leaves[path])
    for i in range(len(forest.k)):
        if i not in mine:
            forest.k[i] = forest.k[i] * rng.choice([-3.0, torch.nan, torch.inf])
            forest.v[i] = forest.v[i] * rng.choice([-3.0, torch.nan, torch.inf])
    query = forest.q[path].clone()
    forest.q = forest.q * rng.choice([-1.0, 1e3, torch.nan])
    forest.q[path] = query
    assert same(tuple(before), tuple(t[path] for t in forest.run(**kwargs)))


@axis
@given(SEEDS)
def test_tokens_outside_the_window_are_never_read(seed):
    forest = Forest.draw(seed)
    window = random.Random(seed).choice([1, 5, 64, 65, 200])
    before = forest.run(window=window)
    for i in range(len(forest.leaves)):
        alone = forest.pick([i]).unshared()
        alone.k[0][:-window], alone.v[0][:-window] = torch.nan, torch.nan
        assert same(tuple(t[i : i + 1] for t in before), alone.run(window=window))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("each", [1, 40])  # paths
@pytest.mark.parametrize("more", [10, 11])
def test_a_shared_token_that_one_window_has_left_is_not_read_for_it(dtype, each, more):
    gen = torch.Generator().manual_seed(0)
    keys, values = (
        [torch.randn(n, 2, 16, generator=gen).to(dtype) for n in (128, 1, more)] for _ in range(2)
    )
    q = torch.randn(2 * each, 4, 16, generator=gen).to(dtype)
    forest = Forest([-1, 0, 0], keys, values, [1] * each + [2] * each, q)
    before = forest.run(window=40)  # from 89 and from 98 or 99 on, in the tile from 64 to 127
    values[0][87 + more], values[0][70] = torch.nan, torch.nan
    after = forest.run(window=40)
    assert after[0][:each].isnan().all()
    assert same([t[each:] for t in after], [t[each:] for t in before])


@axis
@given(SEEDS)
def test_bits_do_not_depend_on_sharing(seed):
    forest, kwargs = Forest.draw(seed, long=seed % 16 == 0), options(seed)
    assert same(forest.run(**kwargs), forest.unshared().run(**kwargs))


@axis
@given(SEEDS)
def test_bits_do_not_depend_on_cuts(seed):
    forest, kwargs = Forest.draw(seed, long=seed % 16 == 0), options(seed)
    assert same(forest.run(**kwargs), forest.cut(seed).run(**kwargs))


@axis
@given(SEEDS, st.integers(1, 256))
def test_bits_do_not_depend_on_page_size(seed, page_size):
    forest, kwargs = Forest.draw(seed), options(seed)
    assert same(forest.run(16, **kwargs), forest.run(page_size, **kwargs))


@axis
@given(SEEDS)
def test_bits_do_not_depend_on_strides(seed):
    forest, kwargs = Forest.draw(seed), options(seed)
    k, v, tree = forest.paged(8)

    def spread(t, gap):
        n, page, heads, d = t.shape
        wide = torch.full((n + 1, heads + 2, page + gap, d + 8), torch.nan, dtype=t.dtype)
        view = wide[1:, 1:-1, :page, 8:].transpose(1, 2)
        return view.copy_(t)

    q = torch.empty(*reversed(forest.q.shape[:2]), forest.q.shape[2], dtype=forest.q.dtype)
    q = q.transpose(0, 1).copy_(forest.q)
    got = pyttc.prefix_tree_attention(q, spread(k, 1), spread(v, 2), tree, **kwargs)
    assert same(forest.run(8, **kwargs), got)


@axis
@given(SEEDS, st.integers(2, 5))
def test_bits_do_not_depend_on_threads(seed, threads):
    forest, kwargs = Forest.draw(seed, long=seed % 16 == 0, paths=12), options(seed)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results.append(forest.run(**kwargs))
    finally:
        torch.set_num_threads(before)
    assert same(*results)


def test_more_paths_than_fit_in_memory_at_once():
    """Partial results past their limit: paths are done in turns, with the same bits."""
    d, n = 256, 2600
    k, v = torch.randn(2100, 1, d), torch.randn(2100, 1, d)
    forest = Forest([-1], [k], [v], [0] * n, torch.randn(n, 9, d))
    out, lse = forest.run(64)
    rows = [0, 1, 1000, 2414, 2425, n - 1]
    assert same((out[rows], lse[rows]), forest.pick(rows).run(64))


@pytest.mark.parametrize("level", ["generic", "avx2", "avx512"])
def test_every_instruction_set(level):
    tests = "test_matches_float64_with_options or on_sharing or on_cuts or on_batch"
    run_below(level, __file__, tests)


def test_compiles_with_the_tree_as_an_argument():
    forest = Forest.draw(3, torch.float32)
    k, v, tree = forest.paged(16)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(q, k, v, tree):
        out, lse = pyttc.prefix_tree_attention(q * 2, k, v, tree, window=40)
        return out + 1, lse

    out, lse = step(forest.q, k, v, tree)
    expected = pyttc.prefix_tree_attention(forest.q * 2, k, v, tree, window=40)
    assert same((out, lse), (expected[0] + 1, expected[1]))


def sample_inputs():
    calls = []
    for seed in range(24):
        forest = Forest.draw(seed, DTYPES[seed % 3], long=seed == 0)
        k, v, tree = forest.paged([1, 16, 100][seed % 3])
        if seed % 4 == 3:
            k, v = k.transpose(1, 2).contiguous().transpose(1, 2), v[:, :, :, :]
        calls.append(((forest.q, k, v, tree), options(seed)))
    empty = pyttc.PrefixTree([], [], [], [], 4)
    pages = torch.zeros(1, 4, 2, 16)
    calls.append(((torch.zeros(0, 4, 16), pages, pages, empty), {}))
    return calls


def invalid_calls():
    forest = Forest.draw(2, torch.float32, heads=(4, 2), dim=16)
    k, v, tree = forest.paged(4)
    q, n = forest.q, forest.q.shape[0]

    def changed(**tensors):
        names = ("parents", "page_offsets", "page_ids", "lengths", "leaves")
        parts = {name: getattr(tree, name).clone() for name in names} | tensors
        return pyttc.PrefixTree.from_tensors(*parts.values(), 4)

    def with_value(name, value):
        tensor = getattr(tree, name).clone()
        tensor[-1] = value
        return changed(**{name: tensor})

    held = Forest([-1], [torch.zeros(9, 2, 16)], [torch.zeros(9, 2, 16)], [0] * n, q)
    held_k, held_v, held_tree = held.paged(4)
    no_page = pyttc.PrefixTree.from_tensors(
        held_tree.parents,
        held_tree.page_offsets,
        held_tree.page_ids + 1000,
        held_tree.lengths,
        held_tree.leaves,
        4,
    )
    return [
        ((q[0], k, v, tree), {}, "q"),
        ((q.double(), k, v, tree), {}, "k_pages"),
        ((q.int(), k, v, tree), {}, "q"),
        ((q[:, :3], k, v, tree), {}, "k_pages"),
        ((q[:, :, :8], k, v, tree), {}, "q"),
        ((q[:-1], k, v, tree), {}, "leaves"),
        ((q, k[0], v, tree), {}, "k_pages"),
        ((q, k, v[:-1], tree), {}, "v_pages"),
        ((q, k, v.bfloat16(), tree), {}, "v_pages"),
        ((q, k[:, :2], v[:, :2], tree), {}, "k_pages"),
        ((q, k.to("meta"), v, tree), {}, "k_pages"),
        ((q, k, v, changed(parents=tree.parents.float())), {}, "parents"),
        ((q, k, v, changed(leaves=tree.leaves.to("meta"))), {}, "leaves"),
        ((q, k, v, changed(lengths=tree.lengths[:-1])), {}, "parents"),
        (
            (q, k, v, changed(parents=tree.parents[None], lengths=tree.lengths[None])),
            {},
            "lengths",
        ),
        ((q, k, v, changed(page_offsets=tree.page_offsets[:-1])), {}, "page_offsets"),
        ((q, k, v, changed(page_ids=tree.page_ids[None])), {}, "page_ids"),
        ((q, k, v, changed(page_ids=torch.full_like(tree.page_ids, len(k)))), {}, "page_ids"),
        ((q, k, v, with_value("parents", 1000)), {}, "parents"),
        ((q, k, v, with_value("parents", len(tree.parents))), {}, "parents"),
        ((q, k, v, with_value("leaves", len(tree.parents))), {}, "leaves"),
        ((q, k, v, with_value("parents", -2)), {}, "parents"),
        ((q, k, v, with_value("parents", tree.parents.shape[0] - 1)), {}, "parents"),
        ((q, k, v, with_value("lengths", -1)), {}, "lengths"),
        ((q, k, v, with_value("lengths", 10**6)), {}, "lengths"),
        ((q, k, v, with_value("leaves", 1000)), {}, "leaves"),
        ((q, k, v, with_value("leaves", -2)), {}, "leaves"),
        ((q, k, v, with_value("page_offsets", 10**6)), {}, "page_offsets"),
        ((q, k, v, with_value("page_offsets", -1)), {}, "page_offsets"),
        ((q, held_k, held_v, no_page), {}, "page_ids"),
        ((q.transpose(1, 2).contiguous().transpose(1, 2), k, v, tree), {}, "q"),
        ((q, k, v, None), {}, "tree"),
        ((q, k, v, tree), {"window": 0}, "window"),
        ((q, k, v, tree), {"softcap": 0.0}, "softcap"),
        ((q, k, v, tree), {"softcap": float("nan")}, "softcap"),
        ((q, k, v, tree), {"scale": float("inf")}, "scale"),
        ((q, k, v, tree), {"impl": "fast"}, "impl"),
    ]


@pytest.mark.parametrize("case", range(len(invalid_calls())))
def test_refuses(case):
    args, kwargs, name = invalid_calls()[case]
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
        pyttc.prefix_tree_attention(*args, **kwargs)
    if "impl" not in kwargs:
        with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
            pyttc.prefix_tree_attention(*args, **kwargs, impl="reference")
