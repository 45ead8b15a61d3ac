"""Every Triton kernel in the interpreter against the reference, and without races."""

import pytest
import torch
import triton
import triton.language as tl
from pyttc.triton_kernels.common import uniform

import pyttc
from pyttc.ops.philox import uniforms

from .. import triton_races
from ..forests import Forest
from ..kernel_calls import calls, dense
from ..kernels import check, check_far_pages, check_stray_slots, kernel_ops
from ..planned import planned_forests
from ..triton_interpreter import programs


@pytest.mark.parametrize("name", kernel_ops("triton"))
def test_against_the_reference(name):
    with triton_races.looked_for():
        for call in calls(name):
            check(name, call, "triton")


@triton.jit
def racing_kernel(x_ptr, CASE: tl.constexpr):
    i = tl.arange(0, 4)
    here = tl.program_id(0) * 4 + i
    if CASE == 0:
        tl.store(x_ptr + here, i)
        tl.debug_barrier()
        tl.store(x_ptr + here, tl.load(x_ptr + tl.program_id(0) * 4 + (3 - i)), mask=i < 0)
        tl.atomic_add(x_ptr + 8 + i, i)
    elif CASE == 1:
        tl.store(x_ptr + here, i)
        tl.load(x_ptr + tl.program_id(0) * 4 + (3 - i))
    elif CASE == 2:
        tl.load(x_ptr + here)
        tl.store(x_ptr + here, i)
    elif CASE == 3:
        tl.store(x_ptr + i, i)
    elif CASE == 4:
        tl.store(x_ptr + here // 2, i)
    elif CASE == 5:
        tl.atomic_add(x_ptr + i, i)
        tl.debug_barrier()
        tl.load(x_ptr + i)
    else:
        tl.load(x_ptr + 4 + i)
        tl.debug_barrier()
        tl.store(x_ptr + here, i)


def test_races_are_found():
    with triton_races.looked_for():
        racing_kernel[(2,)](torch.zeros(12, dtype=torch.int32), 0)
    for case in range(1, 7):
        with triton_races.looked_for(), pytest.raises(Exception, match="Race|two programs"):
            racing_kernel[(2,)](torch.zeros(12, dtype=torch.int32), case)


@pytest.mark.parametrize("name", ["store_kv", "copy_pages"])
def test_the_order_of_programs_does_not_show(name, monkeypatch):
    monkeypatch.setattr(programs, "backwards", True)
    for call in calls(name):
        check(name, call, "triton")


@triton.jit
def uniforms_kernel(seed_ptr, path_ptr, position_ptr, out_ptr):
    i = tl.program_id(0)
    draw = uniform(tl.load(seed_ptr + i), tl.load(path_ptr + i), tl.load(position_ptr + i))
    tl.store(out_ptr + i, draw)


def test_uniform_numbers_have_all_their_bits():
    make = torch.Generator().manual_seed(0)
    seeds = torch.randint(0, 2**63 - 1, (200,), generator=make)
    counters = torch.randint(0, 2**32, (2, 200), generator=make)
    out = torch.empty(200, dtype=torch.float64)
    uniforms_kernel[(200,)](seeds, *counters, out)
    assert torch.equal(out, uniforms(seeds, *counters))


def test_rows_of_slots_out_of_range_are_left_out():
    check_stray_slots("triton", "cpu")


def test_offsets_are_64_bit():
    check_far_pages("triton")


@pytest.mark.parametrize("seed", range(3))
def test_sharing_does_not_show_in_attention(seed):
    forest = Forest.draw(seed + 1, nodes=5, paths=5)
    shared = forest.run(8, impl="triton")
    for other in (forest.unshared(), forest.cut(seed)):
        for a, b in zip(other.run(16, impl="triton"), shared, strict=True):
            assert torch.equal(a, b)


def test_one_plan_serves_changing_trees():
    forests = planned_forests("cpu")
    for i in (0, 1, 0, 2):
        forests.fill(i)
        assert forests.plan.grown == (i == 2)  # the third is the first, grown
        for a, b in zip(forests.call(), forests.expected(i), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("heads", [(4, 2), (70, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_both_attention_ops_give_the_same_bits(heads, dtype):
    (q, k_prefix, v_prefix, k_suffix, v_suffix, lens), _ = dense(1, 3, heads, 24, 530, 90, dtype)
    out, lse = pyttc.shared_prefix_attention(
        q, k_prefix, v_prefix, k_suffix, v_suffix, lens, impl="triton"
    )
    keys = [k_prefix[0], *(k_suffix[0, n, : lens[0, n]] for n in range(3))]
    values = [v_prefix[0], *(v_suffix[0, n, : lens[0, n]] for n in range(3))]
    forest = Forest([-1, 0, 0, 0], keys, values, [1, 2, 3], q[0])
    for a, b in zip(forest.run(16, impl="triton"), (out[0], lse[0]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_neighbour_with_infinite_values_does_not_show(dtype):
    (q, k_prefix, v_prefix, k_suffix, v_suffix, lens), _ = dense(1, 4, (4, 2), 16, 40, 30, dtype)
    lens.fill_(30)
    k_suffix, v_suffix = k_suffix.nan_to_num(), v_suffix.nan_to_num()
    call = q, k_prefix, v_prefix, k_suffix, v_suffix, lens
    before = pyttc.shared_prefix_attention(*call, impl="triton")
    k_suffix[0, 1], v_suffix[0, 1] = float("inf"), float("nan")
    after = pyttc.shared_prefix_attention(*call, impl="triton")
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a[0, [0, 2, 3]], b[0, [0, 2, 3]])


def test_a_neighbour_in_a_tree_with_infinite_values_does_not_show():
    make = torch.Generator().manual_seed(0)
    keys, values = (
        [torch.randn(n, 2, 16, generator=make).bfloat16() for n in (40, 30, 30)] for _ in range(2)
    )
    q = torch.randn(2, 4, 16, generator=make).bfloat16()
    forest = Forest([-1, 0, 0], keys, values, [1, 2], q)
    before = forest.run(16, impl="triton")
    values[1][3], values[1][4] = float("inf"), float("nan")
    for a, b in zip(forest.run(16, impl="triton"), before, strict=True):
        assert torch.equal(a[1], b[1])


def test_a_query_that_is_not_a_number_gives_nothing_else():
    call, _ = dense(1, 3, (4, 2), 16, 600, 30, torch.bfloat16)
    expected = pyttc.shared_prefix_attention(*call, impl="triton")
    call[0][0, 1, 2] = float("nan")
    got = pyttc.shared_prefix_attention(*call, impl="triton")
    for a, b in zip(got, expected, strict=True):
        assert a[0, 1, 2].isnan().all()
        a[0, 1, 2] = b[0, 1, 2]
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_shared_token_that_one_window_has_left_does_not_show_in_it(value, dtype):
    torch.manual_seed(0)
    keys, values = ([torch.randn(n, 2, 16).to(dtype) for n in (128, 1, 10)] for _ in range(2))
    forest = Forest([-1, 0, 0], keys, values, [1, 2], torch.randn(2, 4, 16).to(dtype))
    before = forest.run(window=40, impl="triton")  # from 89 and from 98 on, in one tile
    values[0][93, 0, 5], values[0][70] = value, value
    out, lse = forest.run(window=40, impl="triton")
    assert out[0, :2].isnan().all()  # the heads of that value
    out[0, :2] = before[0][0, :2]
    assert torch.equal(out, before[0]) and torch.equal(lse, before[1])


def test_rows_do_not_show_in_each_other():
    logits = torch.randn(3, 4500) * 2
    whole = pyttc.topk_score(logits, 9, impl="triton")
    for row in range(3):
        alone = pyttc.topk_score(logits[row : row + 1].clone(), 9, impl="triton")
        for a, b in zip(alone, whole, strict=True):
            assert torch.equal(a[0], b[row])
