"""Calls that must be refused: those each op declares, and thousands made by spoiling valid ones.

A refusal is a Python exception that names an argument, from every implementation alike, and leaves all
arguments as they were.
"""

import os
import random
import re

import pytest
import torch
from torch.utils._pytree import tree_map_only

from .common import same, spread
from .ops import NAMES, fresh, function, invalid_calls, sample_inputs, tensors

CALLS = int(os.environ.get("PYTTC_INVALID_CALLS", 2000))
REFUSALS = (TypeError, ValueError, RuntimeError)
DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
]  # fmt: skip
# Sizes that would fit in memory are left out of the large numbers: they are valid, and take minutes.
NUMBERS = [-1, -(2**31), -(2**63), 2**40, 2**63 - 1, 2**64, 10**400, 1e308, 2.5, -1.0]
NUMBERS += [float("nan"), float("inf"), -float("inf"), "many", True, None, [], [1], torch.ones(3)]
INDICES = [-1, -2, -(2**31), 2**31 - 1, 2**40, -(2**63), 2**63 - 1]


def attempt(name, call, impl=None):
    """The exception a call ends with, or None; fails if a refused call changed an argument."""
    args, kwargs = fresh(call)
    if impl is not None:
        kwargs["impl"] = impl
    held = [t for t in tensors((args, kwargs)) if not t.is_meta and t.layout == torch.strided]
    before = [t.detach().clone() for t in held]
    try:
        function(name)(*args, **kwargs)
    except REFUSALS as error:
        for tensor, snapshot in zip(held, before, strict=True):
            assert same(tensor.detach(), snapshot), f"changed by a refused call: {error}"
        return error
    return None


def first_named(error, names):
    """The argument that a message is about: another may be named as what is expected."""
    places = {name: re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)) for name in names}
    return min((found.start(), name) for name, found in places.items() if found)[1]


def names_one(error, names):
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)) for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_declared(name):
    calls = invalid_calls(name)
    assert calls
    for i, (args, kwargs, argument) in enumerate(calls):
        for impl in {kwargs.get("impl"), "reference"} if "impl" not in kwargs else {None}:
            error = attempt(name, (args, kwargs), impl)
            assert error is not None, f"call {i} ({argument}), impl={impl}: was accepted"
            assert names_one(error, [argument]), f"call {i}, impl={impl}: {error}"
            names = {a.name for a in schema(name).arguments} | {argument}
            assert first_named(error, names) == argument, f"call {i}, impl={impl}: {error}"


def spoiled_tensor(tensor, others, pick):
    """What may be wrong with a tensor, as (what, value)."""
    options = [("none", None), ("number", 3), ("list", tensor.tolist()), ("string", "tensor")]
    options.append(("dtype", tensor.to(pick.choice(DTYPES))))
    options.append(("rank", tensor[None]))
    options.append(("meta", tensor.to("meta")))
    if tensor.ndim:
        dim = pick.randrange(tensor.ndim)
        options.append(("rank", tensor.flatten() if tensor.ndim > 1 else tensor.sum()))
        options.append(("size", torch.cat((tensor, tensor), dim)))
        if tensor.shape[dim]:
            options.append(("size", tensor.narrow(dim, 0, tensor.shape[dim] - 1)))
            options.append(("size", tensor.narrow(dim, 0, 0)))
            options.append(("rank", tensor.select(dim, 0)))
            options.append(("expanded", tensor.narrow(dim, 0, 1).expand(tensor.shape)))
        if tensor.shape[-1] > 1:
            options.append(("stride", spread(tensor, last=2)))
        options.append(("sparse", tensor.to_sparse()))
    if tensor.is_floating_point():
        options.append(("grad", tensor.detach().clone().requires_grad_()))
        options += [("alias", other) for other in others if other is not tensor]
    elif tensor.numel() and tensor.dtype in (torch.int32, torch.int64):
        for _ in range(6):  # what only data can tell is wrong most often
            value, at = pick.choice(INDICES), pick.randrange(tensor.numel())
            if torch.iinfo(tensor.dtype).min <= value <= torch.iinfo(tensor.dtype).max:
                flat = tensor.flatten().clone()
                flat[at] = value
                options.append(("value", flat.view(tensor.shape)))
    return pick.choice(options)


def spoiled(name, call, pick):
    """A call with one argument changed: (the call, which, how)."""
    args, kwargs = list(call[0]), dict(call[1])
    keyword_only = [a.name for a in schema(name).arguments if a.kwarg_only and a.name != "impl"]
    which = pick.choice([*range(len(args)), *keyword_only, *kwargs])
    value = args[which] if isinstance(which, int) else kwargs.get(which)
    if isinstance(value, torch.Tensor):
        how, value = spoiled_tensor(value, tensors((args, kwargs)), pick)
    elif value is None or isinstance(value, (bool, int, float, str)):
        how, value = "number", pick.choice(NUMBERS)
    else:
        how, value = "object", pick.choice([None, 3, "tree", []])
    if isinstance(which, int):
        args[which] = value
    else:
        kwargs[which] = value
    return (tuple(args), kwargs), which, how


def schema(name):
    packet = getattr(torch.ops.pyttc, name)
    return getattr(packet, packet.overloads()[0])._schema


@pytest.mark.parametrize("name", NAMES)
def test_spoiled_calls(name):
    pick = random.Random(f"{name} {CALLS}")
    samples = [c for c in sample_inputs(name) if "impl" not in c[1]]
    names = {a.name for a in schema(name).arguments} | set(function(name).__annotations__)
    refused, kinds = 0, set()
    while refused < -(-CALLS // len(NAMES)):
        call, which, how = spoiled(name, pick.choice(samples), pick)
        error, by_reference = attempt(name, call), attempt(name, call, "reference")
        if error is not None and "float64 needs impl='reference'" in str(error):
            continue
        if (error is None) != (by_reference is None):
            pytest.fail(f"{which!r} spoiled by {how}: {call}\n{error}\n{by_reference}")
        if error is None:
            continue
        # torch itself refuses a sparse tensor, and an output that no memory could hold
        if how != "sparse" and not re.search("Storage size|allocate memory", str(error)):
            for refusal in (error, by_reference):
                if not names_one(refusal, names):
                    pytest.fail(f"{which!r} spoiled by {how}: {call}\n{refusal}")
        refused += 1
        kinds.add(how)
    print(f"{name}: {refused} calls refused")
    tensors = [a for a in schema(name).arguments if str(a.type) == "Tensor"]
    # a meta tensor alone is a valid call, and a size is wrong only beside others
    mixed = {"meta", "size"} if len(tensors) > 1 else set()
    assert kinds >= {"dtype", "rank", "none", "string"} | mixed


def emptied(call, size):
    """The call with every dimension of `size` cut to nothing, in all tensors."""

    def cut(tensor):
        for dim, n in enumerate(tensor.shape):
            tensor = tensor.narrow(dim, 0, 0) if n == size else tensor
        return tensor

    return tree_map_only(torch.Tensor, cut, call)


@pytest.mark.parametrize("name", NAMES)
def test_dimensions_of_no_elements_are_refused_by_all_or_by_none(name):
    # no query heads divided by zero in the native attention, which ends the process
    for call in sample_inputs(name):
        if "impl" in call[1]:
            continue
        for size in {n for tensor in tensors(call) for n in tensor.shape if n}:
            empty = emptied(call, size)
            native, reference = (attempt(name, empty, impl) for impl in ("native", "reference"))
            assert (native is None) == (reference is None), (size, native, reference)
