"""Bugs that other engines had, each as a test of what it would look like here. docs/known_bugs.md lists
them all, with those that other tests or a GPU's cover.

Sources are issues on GitHub, owner/repository#number or a shorter name that docs/known_bugs.md spells out.
"""

import math

import numpy as np
import pytest
import torch

import pyttc
from pyttc.engine.cache import PathCache
from pyttc.ops.philox import uniforms

from .common import same

IMPLS = ["native", "reference"]
impls = pytest.mark.parametrize("impl", IMPLS)


def attend(n, prefix, suffix, impl, q=None, dtype=torch.float32, fill=torch.nan, of=None):
    """Paths of `suffix` tokens each behind a prefix of `prefix`, room for more holding `fill`; keys and
    values are numbers of the dtype `of`, if one is given."""
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(1, n, 4, 32, generator=rng).to(dtype) if q is None else q
    kv = torch.full((2, 1, prefix + 5, 2, 32), fill, dtype=dtype)
    own = torch.full((2, 1, n, max(suffix) + 3, 2, 32), fill, dtype=dtype)
    kv[:, :, :prefix] = torch.randn(2, 1, prefix, 2, 32, generator=rng).to(of or dtype)
    for i, length in enumerate(suffix):
        own[:, 0, i, :length] = torch.randn(2, length, 2, 32, generator=rng).to(of or dtype)
    return pyttc.shared_prefix_attention(
        q, *kv, *own, torch.tensor([suffix]), prefix_lens=torch.tensor([prefix]), impl=impl
    )


# --- nothing to attend to, NaN, infinity


@impls
def test_merging_two_empty_states_gives_an_empty_state(impl):
    # flashinfer#4051, #4054, #5262; vllm#39148: NaN where both log-sum-exps are -inf
    out, lse = torch.zeros(6, 3, 8), torch.full((6, 3), -torch.inf)
    out[::2], lse[::2] = torch.randn(3, 3, 8), torch.randn(3, 3)
    merged = pyttc.merge_states(
        out, lse, torch.zeros(6, 3, 8), torch.full((6, 3), -torch.inf), impl=impl
    )
    assert same(merged[0], out) and same(merged[1], lse)


@impls
def test_a_path_without_keys_has_lse_minus_infinity_and_output_zero(impl):
    # flash-attention#978: +inf; flashinfer#4452, #4450: a finite number; vllm#37442: the row not written
    out, lse = attend(3, 0, [0, 4, 0], impl)
    assert (lse[0, [0, 2]] == -torch.inf).all() and (out[0, [0, 2]] == 0).all()
    assert lse[0, 1].isfinite().all() and out[0, 1].isfinite().all()


@impls
@pytest.mark.parametrize(
    "n, prefix, suffix", [(0, 0, [0]), (1, 0, [0]), (2, 7, [0, 0]), (2, 0, [1, 0])]
)
def test_empty_batches_prefixes_and_suffixes_end(n, prefix, suffix, impl):
    # flash-attention#2568: zero-length keys hang; flash-attention#1537: a wrong shape error
    out, lse = attend(n, prefix, suffix[:n] or [0], impl) if n else (torch.empty(0), torch.empty(0))
    if not n:
        q = torch.empty(1, 0, 4, 32)
        kv, own = torch.randn(2, 1, 3, 2, 32), torch.randn(2, 1, 0, 3, 2, 32)
        out, lse = pyttc.shared_prefix_attention(
            q, *kv, *own, torch.empty(1, 0, dtype=torch.int32), impl=impl
        )
    assert not out.isnan().any() and not lse.isnan().any()


@impls
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fill", [torch.nan, torch.inf])
def test_padding_never_reaches_a_result(dtype, fill, impl):
    # flash-attention#1745: 0 * NaN; vllm#43990: fresh blocks hold NaN; vllm#26599: uninitialised sums
    assert all(
        map(
            same,
            attend(4, 33, [0, 1, 17, 40], impl, dtype=dtype, fill=fill),
            attend(4, 33, [0, 1, 17, 40], impl, dtype=dtype, fill=0.0),
        )
    )


@impls
def test_huge_queries_give_numbers(impl):
    # pytorch#121558: flash attention gives NaN for large bfloat16 queries
    q = (torch.randn(1, 2, 4, 32, generator=torch.Generator().manual_seed(1)) * 1e37).bfloat16()
    out, lse = attend(2, 20, [3, 4], impl, q=q, dtype=torch.bfloat16)
    exact, _ = attend(
        2, 20, [3, 4], "reference", q=q.double(), dtype=torch.float64, of=torch.bfloat16
    )
    assert lse.isfinite().all() and torch.equal(out, exact.bfloat16())


@impls
def test_one_bad_row_is_flagged_and_the_others_keep_their_bits(impl):
    # flashinfer#2402, #2455; vllm#40376, #26859: an index of garbage, then an illegal access
    logits, ids = torch.randn(5, 3000), torch.arange(5)
    good = pyttc.sample(logits, seed=1, path_ids=ids, positions=ids, topk=8, impl=impl)
    logits[2] = torch.nan
    got = pyttc.sample(logits, seed=1, path_ids=ids, positions=ids, topk=8, impl=impl)
    others = [0, 1, 3, 4]
    assert all(same(a[others], b[others]) for a, b in zip(got, good, strict=True))
    assert got.tokens[2] == -1 and not got.valid[2] and (got.topk_indices[2] == -1).all()


# --- draws and their parameters


@impls
def test_what_has_probability_zero_is_never_drawn(impl):
    # pytorch#4858, #48841, #9960: multinomial at the edges of the uniform
    logits = torch.full((1, 4000), -torch.inf)
    logits[0, [7, 3999]] = torch.tensor([0.0, -30.0])
    n = 20_000 if impl == "native" else 200
    ids = torch.arange(n)
    tokens = pyttc.sample(
        logits.expand(n, -1), seed=0, path_ids=ids, positions=ids, impl=impl
    ).tokens
    assert set(tokens.tolist()) <= {7, 3999}


@impls
def test_seeds_of_a_batch_are_each_rows_own(impl):
    # vllm#51226: a seed is ignored when another request has none
    logits, ids = torch.randn(1, 500).expand(6, -1), torch.zeros(6, dtype=torch.long)
    seeds = torch.tensor([1, 2, 1, 3, 2, 1])
    tokens = pyttc.sample(logits, seed=seeds, path_ids=ids, positions=ids, impl=impl).tokens
    for i, seed in enumerate(seeds.tolist()):
        alone = pyttc.sample(logits[:1], seed=seed, path_ids=ids[:1], positions=ids[:1], impl=impl)
        assert tokens[i] == alone.tokens[0]


def test_streams_of_draws_have_nothing_in_common():
    # local-inference-lab/vllm#205: two uses of one range of Philox counters are correlated
    ids = torch.arange(100_000)
    streams = [uniforms(7, ids, ids * 0 + 3, draw, use) for draw in (0, 1) for use in (0, 1)]
    streams += [uniforms(7, ids * 0 + 3, ids), uniforms(8, ids, ids * 0 + 3)]
    together = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams))
    assert together.abs().max() < 0.02  # six standard deviations
    assert (streams[0] == streams[4]).nonzero().tolist() == [[3]]  # path 3 at position 3 is both


BAD = [math.nan, math.inf, -math.inf, -1.0, 1e30, "0.5", None]


@impls
@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p"])
@pytest.mark.parametrize("value", BAD)
def test_senseless_sampling_parameters_are_refused_by_name(field, value, impl):
    # llama.cpp#19367: temperature=999999 and top_p=-1 kill the server
    if field == "temperature" and value == 1e30:
        return  # a very flat row, but a row
    ids = torch.zeros(1, dtype=torch.long)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=field):
        pyttc.sample(
            torch.randn(1, 9), seed=0, path_ids=ids, positions=ids, **{field: value}, impl=impl
        )


@impls
@pytest.mark.parametrize("k", [-1, 0, 10, 1025, 10**9, 2**62])
def test_sizes_are_bounded_before_anything_is_allocated(k, impl):
    # sglang#36856: top_logprobs_num=1e9 takes 22 GB
    with pytest.raises(ValueError, match=r"^k: got"):
        pyttc.topk_score(torch.randn(2, 9), k, impl=impl)


# --- top-k


@impls
def test_thousands_of_ties_and_infinities_are_ranked_exactly(impl):
    # sglang#30645: more than 1024 ties give the index -1; FilteredTopK's overflow (flashinfer#3529)
    logits = torch.zeros(2, 8320)
    logits[:, 5000:5100] = torch.arange(100.0)
    logits[1, :200] = -torch.inf
    got = pyttc.topk_score(logits, 1024, impl=impl)
    for row, first in ((0, 0), (1, 200)):
        best = [*range(5099, 5000, -1)]
        ties = [i for i in range(first, 8320) if not 5000 < i < 5100][: 1024 - 99]
        assert got.indices[row].tolist() == best + ties


@impls
def test_the_last_columns_count(impl):
    # sglang#36807: a top-k that leaves out the end of the vocabulary
    for v in (1, 31, 257, 4097, 32_001):
        logits = torch.zeros(1, v)
        logits[0, v - 1] = 1.0
        assert pyttc.topk_score(logits, 1, impl=impl).indices.item() == v - 1


# --- layout


@impls
def test_heads_too_wide_are_refused_and_not_served_by_something_else(impl):
    # transformers#46960: a head dimension above 256 falls back to another computation without a word
    q, kv, own = (
        torch.randn(1, 1, 2, 264),
        torch.randn(2, 1, 4, 1, 264),
        torch.randn(2, 1, 1, 3, 1, 264),
    )
    with pytest.raises(ValueError, match=r"^q: got shape .* 16 to 256"):
        pyttc.shared_prefix_attention(q, *kv, *own, torch.tensor([[1]]), impl=impl)


@impls
@pytest.mark.parametrize("name", ["path_ids", "positions"])
def test_tensors_of_two_devices_are_refused(name, impl):
    # flashinfer#924: an illegal access where tensors lie on another device
    ids = {
        "path_ids": torch.zeros(2, dtype=torch.long),
        "positions": torch.zeros(2, dtype=torch.long),
    }
    ids[name] = ids[name].to("meta")
    with pytest.raises((ValueError, RuntimeError), match=name):
        pyttc.sample(torch.randn(2, 9), seed=0, **ids, impl=impl)


@impls
def test_a_second_call_with_other_strides_is_right_too(impl):
    # flash-attention#2886: made contiguous in the first, compiled call only
    fn = torch.compile(lambda x: pyttc.topk_score(x, 3, impl=impl), backend="eager", dynamic=True)
    x = torch.randn(6, 40)
    spread = torch.full((6, 90), torch.nan)[:, 3:43].copy_(x)
    for first, second in zip(fn(x), fn(spread), strict=True):
        assert same(first, second)


@impls
def test_every_page_size_gives_the_same_bits(impl):
    # flashinfer#4347: wrong for pages of more than 128 tokens
    results = []
    for page_size in (1, 2, 16, 64, 128, 129, 256):
        pages = -(-300 // page_size)
        rng = torch.Generator().manual_seed(3)
        kv = torch.full((2, pages * page_size, 2, 32), torch.nan)
        kv[:, :300] = torch.randn(2, 300, 2, 32, generator=rng)
        tree = pyttc.PrefixTree([-1], [range(pages)], [300], [0, 0], page_size)
        q = torch.randn(2, 4, 32, generator=rng)
        k, v = kv.unflatten(1, (pages, page_size))
        results.append(pyttc.prefix_tree_attention(q, k, v, tree, impl=impl))
    assert all(same(a, b) for r in results for a, b in zip(r, results[0], strict=True))


@impls
@pytest.mark.parametrize("length", [-1, 2**31 - 1])
def test_lengths_that_cannot_be_are_refused(length, impl):
    # vllm#51593: a length of -1 read as unsigned
    with pytest.raises(ValueError, match="suffix_lens"):
        q, kv, own = (
            torch.randn(1, 1, 2, 16),
            torch.randn(2, 1, 4, 1, 16),
            torch.randn(2, 1, 1, 3, 1, 16),
        )
        pyttc.shared_prefix_attention(q, *kv, *own, torch.tensor([[length]]), impl=impl)


# --- the cache


def test_a_fork_is_freed_once_and_pages_are_counted_once():
    # vllm#3347, #1556, #1584: freed twice; sglang#35270: shared pages counted twice
    cache = PathCache(10, 4)
    leaf, _ = cache.new(np.arange(9, dtype=np.int32))
    leaf = int(cache.write(np.array([leaf]), np.array([9])).leaves[0])
    cache.share(np.array([leaf]), np.array([2]))
    leaves = cache.write(np.array([leaf] * 3), np.array([1] * 3)).leaves
    assert cache.free_pages == 10 - 2 - 3
    for i, left in enumerate((6, 7, 10)):
        cache.release(leaves[i : i + 1])
        assert cache.free_pages == left
    assert cache.nodes == 1


def test_prompts_are_told_apart_by_their_tokens():
    # vllm#12621, #54727: predictable or colliding hashes of a prefix
    cache = PathCache(10, 4)
    a, b = np.array([1, 2, 3, 4, 5], np.int32), np.array([1, 2, 3, 260, 5], np.int32)
    leaf, _ = cache.new(a)
    cache.write(np.array([leaf]), np.array([5]))
    cache.remember(leaf, a)
    assert cache.new(b)[1] == 0 and cache.new(a)[1] == 4
