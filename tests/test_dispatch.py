"""Which implementation serves a call: named, refused, explained; on every instruction set; how fast."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_map_only

import pyttc
from pyttc import _C, PrefixTree
from pyttc.dispatch import IMPLS, ops

from .common import LEVELS, fastest, same, threads
from .ops import NAMES, fresh, function, invalid_calls, sample_inputs, tensors

ROOT = Path(__file__).parent.parent


def first(name):
    """A small call on float32 without `impl`."""
    return next(
        fresh(call)
        for call in sample_inputs(name)
        if "impl" not in call[1] and call[0][0].dtype == torch.float32 and call[0][0].numel()
    )


@pytest.mark.parametrize("name", NAMES)
def test_impl_can_be_named(name):
    for impl in ("native", "reference"):
        args, kwargs = first(name)
        function(name)(*args, **kwargs, impl=impl)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_served_is_refused_with_the_reason(name):
    args, kwargs = first(name)
    with pytest.raises(ValueError, match=r"impl: got 'fastest', expected one of reference, native"):
        function(name)(*args, **kwargs, impl="fastest")
    for impl in ("triton", "cuda"):
        reason = ops[name].refusal(impl, args[0])
        if reason is not None:
            with pytest.raises(RuntimeError) as refused:
                function(name)(*args, **kwargs, impl=impl)
            assert str(refused.value).endswith(reason) and name in str(refused.value)


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_the_references(name):
    call = first(name)
    args, kwargs = tree_map_only(
        torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, call
    )
    function(name)(*args, **kwargs, impl="reference")
    for impl in (None, "native"):
        with pytest.raises(RuntimeError, match="float64 needs impl='reference'"):
            function(name)(*args, **kwargs, impl=impl)


@pytest.mark.parametrize("name", NAMES)
def test_requires_grad_is_refused_unless_grad_is_off(name):
    args, kwargs = first(name)
    args = (args[0].requires_grad_(), *args[1:])
    with pytest.raises(RuntimeError, match="requires grad, but"):
        function(name)(*args, **kwargs)
    with torch.no_grad():
        function(name)(*args, **kwargs)
    with torch.inference_mode():
        function(name)(*args, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_explain(name):
    fn = function(name)
    args, kwargs = first(name)
    found = pyttc.explain(fn, *args, **kwargs)
    assert found.chosen == "native" and found.why == "the default on cpu"
    assert set(found.others) == set(IMPLS) - {"native"}
    assert "can serve this call" in found.others["reference"]
    assert found.others["cuda"] and found.others["triton"]
    assert str(found).startswith(f"pyttc.{name}: native would run")
    named = pyttc.explain(fn, *args, **kwargs, impl="reference")
    assert named.chosen == "reference" and named.why == "named by impl='reference'"
    unserved = pyttc.explain(fn, *args, **kwargs, impl="cuda")
    assert unserved.chosen is None and unserved.why.startswith("named by impl='cuda', but ")
    call = tree_map_only(
        torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, (args, kwargs)
    )
    double = pyttc.explain(fn, *call[0], **call[1])
    assert double.chosen is None and "impl='reference'" in double.why
    moved = [arg.to("meta") if isinstance(arg, PrefixTree) else arg for arg in args]
    moved, options = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (moved, kwargs))
    elsewhere = pyttc.explain(fn, *moved, **options)
    assert elsewhere.chosen is None and "the default on meta" in elsewhere.why


@pytest.mark.parametrize("name", NAMES)
def test_explain_says_what_the_call_would_raise(name):
    args, kwargs = first(name)
    grad = args[0].clone().requires_grad_()
    calls = [((args[0].int(), *args[1:]), kwargs), ((grad, *args[1:]), kwargs)]
    calls += [((None, *args[1:]), kwargs), (("text", *args[1:]), kwargs), ((), {})]
    calls += [(given, options) for given, options, _ in invalid_calls(name)]
    foreseen = 0
    for given, options in calls:
        said = pyttc.explain(function(name), *fresh(given), **fresh(options))
        with pytest.raises((TypeError, ValueError, RuntimeError)) as raised:
            function(name)(*fresh(given), **fresh(options))
        if said.chosen is None and not said.others:
            error = f"{type(raised.value).__name__}: {raised.value}"
            assert said.why == f"the call raises {error}"
            assert str(said) == f"pyttc.{name}: nothing would run ({said.why})"
            foreseen += 1
    assert foreseen > len(calls) / 2  # the others are wrong in values, or named an impl
    for given, options in calls[:5]:
        assert pyttc.explain(function(name), *given, **options).chosen is None


@pytest.mark.parametrize("name", NAMES)
def test_explain_runs_nothing(name):
    call = first(name)
    args, kwargs = fresh(call)
    before = fresh(call)
    pyttc.explain(function(name), *args, **kwargs)
    assert all(same(a, b) for a, b in zip(tensors(args), tensors(before[0]), strict=True))


@pytest.mark.parametrize("impl", [None, "reference"])
def test_a_number_of_more_than_64_bits_is_named(impl):
    q, pages = torch.randn(1, 2, 16), torch.randn(1, 4, 2, 16)
    tree = PrefixTree([-1], [[0]], [4], [0], 4)
    with pytest.raises(ValueError, match=f"^window: got {2**63}, expected a number of 64 bits"):
        pyttc.prefix_tree_attention(q, pages, pages, tree, window=2**63, impl=impl)
    with pytest.raises(ValueError, match=f"^k: got {-(2**70)}, expected a number of 64 bits"):
        pyttc.topk_score(q[0], -(2**70), impl=impl)


def test_explain_wants_an_op():
    for fn in (torch.add, random.sample, None):
        with pytest.raises(ValueError, match="expected one of the ops"):
            pyttc.explain(fn, torch.ones(3))


@pytest.mark.parametrize("name", NAMES)
def test_threads_follow_torch(name):
    calls, results = sample_inputs(name), []
    for n in (1, 2, 3, 4):
        with threads(n):
            result = []
            for args, kwargs in map(fresh, calls):
                result += tensors((function(name)(*args, **kwargs), args))
        results.append(result)
    for other in results[1:]:
        assert all(same(a, b) for a, b in zip(other, results[0], strict=True))


SMOKE = """
import torch
from pyttc import _C
from tests.ops import NAMES, fresh, function, sample_inputs, tensors

for name in NAMES:
    for args, kwargs in sample_inputs(name):
        if "impl" in kwargs:
            continue
        results = []
        for impl in ("native", "reference"):
            copies, options = fresh((args, kwargs))
            results.append(tensors((function(name)(*copies, **options, impl=impl), copies)))
        for native, reference in zip(*results, strict=True):
            bound = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(args[0].dtype, 1e-4)
            torch.testing.assert_close(native, reference, rtol=bound, atol=bound, equal_nan=True)
print(_C.isa())
"""


def smoke(level):
    environment = {**os.environ, "PYTTC_CPU_ISA": level}
    command = [sys.executable, "-c", SMOKE]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("level", LEVELS)
def test_every_op_on_every_instruction_set(level):
    done = smoke(level)
    if LEVELS.index(level) <= LEVELS.index(_C.isa_of_machine()):
        assert done.returncode == 0 and done.stdout.strip() == level, done.stderr
    else:
        assert done.returncode != 0
        assert f"PYTTC_CPU_ISA={level}: this machine reaches only" in done.stderr


def test_an_unknown_instruction_set_is_refused():
    done = smoke("sse9")
    assert done.returncode != 0
    assert (
        "PYTTC_CPU_ISA: got sse9, expected generic, avx2, avx512, avx512bf16 or amx" in done.stderr
    )


@pytest.mark.parametrize("name", NAMES)
def test_overhead_of_a_call(name, capsys):
    """Beyond allocating its outputs, as decoding calls it: without autograd. The unit is the time in
    which this machine, now, allocates one tensor, about 1 us. Calls were measured at 2 to 5 of them on a
    quiet machine; the bound is what a check written in Python on the way would take by itself.
    """
    calls = [
        call
        for call in sample_inputs(name)
        if "impl" not in call[1] and call[0][0].dtype == torch.float32 and call[0][0].numel()
    ]
    args, kwargs = fresh(min(calls, key=lambda call: sum(t.numel() for t in tensors(call))))
    fn = function(name)
    outputs = [(t.shape, t.dtype) for t in tensors(fn(*args, **kwargs))]

    def hundred(run):
        return lambda: [run() for _ in range(100)]

    allocate = hundred(lambda: [torch.empty(s, dtype=d) for s, d in outputs])
    with threads(1), torch.inference_mode():
        unit = fastest(hundred(lambda: [torch.empty(8, dtype=torch.float32)]), 0, patience=0.5)
        empty = fastest(allocate, 0, patience=0.5)
        call = fastest(hundred(lambda: fn(*args, **kwargs)), empty + 15 * unit)
    with capsys.disabled():
        us = f"{call * 1e4:.1f} us a call, {(call - empty) * 1e4:.1f} us over torch.empty"
        print(f"\n{name}: {us}, {(call - empty) / unit:.1f} units", end="")
    assert call <= empty + 15 * unit


def test_a_negated_view_is_read_negated():
    """The imaginary part of a conjugate is a view that holds the opposite of what is in memory."""
    logits = torch.randn(2, 8)
    negated = torch._neg_view(-logits)
    assert negated.is_neg()
    for got, expected in zip(
        pyttc.topk_score(negated, 4), pyttc.topk_score(logits, 4), strict=True
    ):
        assert same(got, expected)
