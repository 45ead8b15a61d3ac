"""Every op, in every overload: torch.library.opcheck, and torch.compile without graph breaks."""

import inspect

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_flatten

from .common import same
from .ops import NAMES, Calls, fresh, function, sample_inputs, tensors


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    """Schema, autograd registration, fake tensors, AOT dispatch with dynamic shapes."""
    samples = sample_inputs(name)
    assert len(samples) >= 20
    overloads = set()
    for args, kwargs in samples:
        with Calls() as calls:
            function(name)(*fresh(args), **fresh(kwargs))
        assert calls.seen
        for overload, op_args, op_kwargs in calls.seen:
            overloads.add(overload._overloadname)
            torch.library.opcheck(overload, fresh(op_args), fresh(op_kwargs))
    assert overloads == set(getattr(torch.ops.pyttc, name).overloads())


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_schema(name):
    parameters = inspect.signature(function(name)).parameters
    packet = getattr(torch.ops.pyttc, name)
    for overload in packet.overloads():
        for argument in getattr(packet, overload)._schema.arguments:
            if argument.has_default_value() and argument.name in parameters:
                assert parameters[argument.name].default == argument.default_value, argument.name


def assert_compiled_is_eager(name, call, backend, dynamic=None):
    args, kwargs = call
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function(name), backend=counter, fullgraph=True, dynamic=dynamic)
    eager_call, compiled_call = (fresh(args), fresh(kwargs)), (fresh(args), fresh(kwargs))
    expected = function(name)(*eager_call[0], **eager_call[1])
    result = compiled(*compiled_call[0], **compiled_call[1])
    assert counter.frame_count
    assert tree_flatten(result)[1] == tree_flatten(expected)[1]
    for a, b in zip(
        tensors((result, *compiled_call)), tensors((expected, *eager_call)), strict=True
    ):
        assert same(a, b)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", NAMES)
def test_compile(name, backend):
    samples = sample_inputs(name)
    for i in range(0, len(samples), max(1, len(samples) // 3)):
        assert_compiled_is_eager(name, samples[i], backend)
        if not (backend == "aot_eager" and writes_into_one_storage(name, samples[i])):
            assert_compiled_is_eager(name, samples[i], backend, dynamic=True)


def writes_into_one_storage(name, call):
    """Whether tensors that an in-place op writes are views of one: torch cannot trace these with a size of
    the storage that it does not know."""
    overload = getattr(torch.ops.pyttc, name).default
    written = [
        value.untyped_storage()._cdata
        for value, argument in zip(call[0], overload._schema.arguments, strict=False)
        if argument.alias_info and argument.alias_info.is_write
    ]
    return len(set(written)) < len(written)


@pytest.mark.parametrize("name", NAMES)
def test_compile_with_inductor(name):
    if torch.__version__ < "2.12" and name in ("copy_pages", "store_kv"):
        pytest.skip("this torch corrupts views of one tensor that an op in place writes (README)")
    assert_compiled_is_eager(name, sample_inputs(name)[0], "inductor")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_is_lost_silently(name, backend):
    """A backward that ends at the op would give None as a gradient: the call is refused instead."""
    args, kwargs = next(c for c in sample_inputs(name) if c[0][0].is_floating_point())
    args = (args[0].detach().clone().requires_grad_(), *args[1:])
    torch._dynamo.reset()
    compiled = torch.compile(function(name), backend=backend, fullgraph=True)
    with pytest.raises(RuntimeError, match="requires grad"):
        compiled(*args, **kwargs)
