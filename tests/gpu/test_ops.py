"""Every kernel on the device against the reference on the CPU, and what only a device can show: graphs,
streams, large offsets, repetition, and that bits do not depend on the batch."""

import os

import pytest
import torch

import pyttc

from ..forests import Forest
from ..kernel_calls import calls, dense, tops
from ..kernels import (
    IN_PLACE,
    check,
    check_many_draws,
    check_merged_bits,
    check_rows_alone,
    check_stray_slots,
    check_tokens,
    kernel_ops,
    moved,
    run,
)
from ..ops import fresh
from ..planned import planned_forests

LAUNCHES = int(os.environ.get("PYTTC_LAUNCHES", 2000))
IMPLS = [(impl, name) for impl in ("triton", "cuda") for name in kernel_ops(impl)]


def implementations(name):
    return [impl for impl, other in IMPLS if other == name]


each_kernel = pytest.mark.parametrize(("impl", "name"), IMPLS)


def equal(a, b):
    return all(torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) for x, y in zip(a, b, strict=True))


@each_kernel
def test_against_the_reference(impl, name):
    for call in calls(name):
        check(name, call, impl, "cuda")


@each_kernel
def test_captured_graphs_replay(impl, name):
    for call in calls(name)[:6]:
        args = moved(fresh(call), "cuda")
        expected = run(name, moved(fresh(call), "cuda"), impl)  # compiles, too
        if name == "prefix_tree_attention":  # a plan is not made while a graph is captured
            q, k_pages, _, tree = args[0]
            tree.plan(q, k_pages)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = run(name, args, impl)
        for _ in range(2):
            if name not in IN_PLACE:
                for t in got:
                    t.fill_(3)
            graph.replay()
        if name != "copy_pages":  # twice the same copies are another result
            assert equal(got, expected)


@each_kernel
def test_runs_on_the_current_stream(impl, name):
    """What it reads only comes to be on that stream, late."""
    for call in calls(name)[:3]:
        expected = run(name, moved(fresh(call), "cuda"), impl)
        staged, args = moved(fresh(call), "cuda"), moved(fresh(call), "cuda")
        pairs = [
            (to, of)
            for to, of in zip(tensors(args), tensors(staged), strict=True)
            if of.is_floating_point() and 0 not in of.stride()
        ]
        for to, _ in pairs:
            to.fill_(3)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            for to, of in pairs:
                to.copy_(of)
            got = run(name, args, impl)
        stream.synchronize()
        assert equal(got, expected)


def tensors(call):
    args, kwargs = call
    return [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]


def test_a_graph_stays_valid_while_the_tree_changes():
    states = planned_forests("cuda")
    call, plan = states.call, states.plan
    states.fill(0)
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    for i in (1, 0, 2, 1):
        states.fill(i)
        assert plan.grown == (i == 2)  # the third is the first, grown
        graph.replay()
        assert equal(got, states.expected(i))


@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_pools_beyond_two_billion_elements(impl):
    pages, size, heads, d = 2**31 // (64 * 8 * 128) + 8, 64, 8, 128
    k_pages = torch.zeros(pages, size, heads, d, dtype=torch.bfloat16, device="cuda")
    v_pages = torch.zeros_like(k_pages)
    k, v = torch.randn(2, 3, heads, d, device="cuda").bfloat16()
    last = pages * size - 1
    if impl in pyttc.dispatch.ops["store_kv"].impls:
        pyttc.store_kv(k, v, k_pages, v_pages, torch.tensor([last, 5, -1]).cuda(), impl=impl)
        assert torch.equal(k_pages[-1, -1], k[0]) and torch.equal(v_pages[0, 5], v[1])
    if impl in pyttc.dispatch.ops["copy_pages"].impls:
        k_pages[-1] = 3
        src, dst = torch.tensor([pages - 1, 0]).cuda(), torch.tensor([1, pages - 2]).cuda()
        pyttc.copy_pages(k_pages, v_pages, src, dst, impl=impl)
        assert (k_pages[1] == 3).all() and torch.equal(v_pages[-2, 5], v[1])
    if impl == "triton":
        k_pages[pages - 2 :] = 1
        tree = pyttc.PrefixTree([-1], [[pages - 1, pages - 2]], [100], [0], size, device="cuda")
        out, lse = pyttc.prefix_tree_attention(k[:1], k_pages, k_pages, tree, impl=impl)
        assert torch.allclose(out.float(), torch.ones_like(out).float(), atol=1e-2)


@pytest.mark.parametrize("impl", implementations("topk_score"))
def test_rows_beyond_two_billion_elements(impl):
    logits = torch.zeros(16400, 2**17, dtype=torch.bfloat16, device="cuda")
    logits[-1, 99_999] = 5
    assert pyttc.topk_score(logits, 1, impl=impl).indices[-1].item() == 99_999


@pytest.mark.parametrize("impl", implementations("topk_score"))
def test_rows_of_logits_are_scored_as_if_alone(impl):
    check_rows_alone(impl, "cuda")


@pytest.mark.parametrize("impl", implementations("select_beams"))
def test_beams_of_a_large_step(impl):
    """1,024 rows of 32 children: one group, and one a row."""
    make = torch.Generator().manual_seed(0)
    logprobs, scores = torch.randn(1024, 32, generator=make), torch.randn(1024, generator=make)
    tokens = torch.randint(0, 151_936, (1024, 32), generator=make)
    for groups, width in ((torch.zeros(1024).long(), 256), (torch.arange(1024), 8)):
        call = scores, logprobs.bfloat16().float(), tokens, groups, width
        expected = pyttc.select_beams(*call, impl="native")
        got = pyttc.select_beams(*moved(call, "cuda"), impl=impl)
        assert equal([t.cpu() for t in got], expected)


@each_kernel
def test_repeated_launches_do_not_differ(impl, name):
    """Of sampling LAUNCHES times, of all else a twentieth: what races shows in some."""
    if name in IN_PLACE:
        pytest.skip("a second call is another")
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    for call in calls(name)[:12:11]:
        args = moved(call, "cuda")
        first = run(name, args, impl)
        for _ in range(LAUNCHES // (1 if name == "sample" else 20)):
            for a, b in zip(run(name, args, impl), first, strict=True):
                different += (a.nan_to_num(7.0) != b.nan_to_num(7.0)).sum()
    assert different.item() == 0


@pytest.mark.parametrize("impl", implementations("sample"))
@pytest.mark.parametrize("rows", [1, 2, 17, 64, 257])
def test_the_batch_does_not_show_in_the_bits(impl, rows):
    logits = tops("random", (257, 151_936), torch.bfloat16).cuda()
    ids = torch.arange(257).cuda()
    whole = pyttc.sample(logits, seed=3, path_ids=ids, positions=ids, top_p=0.9, topk=20, impl=impl)
    part = pyttc.sample(
        logits[:rows],
        seed=3,
        path_ids=ids[:rows],
        positions=ids[:rows],
        top_p=0.9,
        topk=20,
        impl=impl,
    )
    assert equal(part, [t[:rows] for t in whole])
    hidden, weight = (
        torch.randn(257, 512).bfloat16().cuda(),
        torch.randn(5000, 512).bfloat16().cuda(),
    )
    many = pyttc.lm_head_topk(hidden, weight, 8, impl="triton")
    assert equal(
        pyttc.lm_head_topk(hidden[:rows], weight, 8, impl="triton"), [t[:rows] for t in many]
    )


@pytest.mark.parametrize("seed", range(20))
def test_sharing_does_not_show_in_the_bits(seed):
    forest = Forest.draw(seed, nodes=9, paths=40, long=True)
    ways = [
        forest,
        forest.unshared(),
        forest.cut(seed),
        forest.pick(list(range(len(forest.leaves)))),
    ]
    results = []
    for way in ways:
        k_pages, v_pages, tree = way.paged(16)
        results.append(
            pyttc.prefix_tree_attention(
                way.q.cuda(), k_pages.cuda(), v_pages.cuda(), tree.to("cuda"), impl="triton"
            )
        )
    for other in results[1:]:
        assert equal(other, results[0])


def test_both_attention_ops_give_the_same_bits():
    call, _ = moved(dense(1, 64, (32, 8), 128, 2100, 256, torch.bfloat16), "cuda")
    q, k_prefix, v_prefix, k_suffix, v_suffix, lens = call
    out, lse = pyttc.shared_prefix_attention(*call, impl="triton")
    keys = [k_prefix[0], *(k_suffix[0, n, : lens[0, n]] for n in range(64))]
    values = [v_prefix[0], *(v_suffix[0, n, : lens[0, n]] for n in range(64))]
    parents, leaves = [-1] + [0] * 64, list(range(1, 65))
    forest = Forest(parents, [t.cpu() for t in keys], [t.cpu() for t in values], leaves, q[0].cpu())
    k_pages, v_pages, tree = forest.paged(16)
    got = pyttc.prefix_tree_attention(
        q[0], k_pages.cuda(), v_pages.cuda(), tree.to("cuda"), impl="triton"
    )
    assert equal(got, (out[0], lse[0]))


@pytest.mark.parametrize("impl", implementations("sample"))
def test_tokens_are_those_of_the_cpu(impl):
    check_tokens(impl, "cuda", 32_000)
    check_many_draws(impl, "cuda")


@pytest.mark.parametrize("impl", implementations("store_kv"))
def test_rows_of_slots_out_of_range_are_left_out(impl):
    check_stray_slots(impl, "cuda")


@pytest.mark.parametrize("impl", implementations("merge_states"))
def test_the_layout_does_not_show_in_the_bits(impl):
    check_merged_bits(impl, "cuda")
