"""What torch may wrap around a call or its tensors: transforms, modes, traces, subclasses, storages that
hold nothing. A call then gives what it gives without, or raises; it never reads what is not there."""

import contextlib
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

import pyttc

from .common import same
from .ops import NAMES, Calls, fresh, function, sample_inputs, tensors

IN_PLACE = ("copy_pages", "store_kv")
PURE = [name for name in NAMES if name not in IN_PLACE]


def call_of(name):
    """A call on float32 that gives every tensor the op takes as an argument of its own, if it can."""
    calls = [
        call
        for call in sample_inputs(name)
        if "impl" not in call[1] and call[0][0].dtype == torch.float32 and call[0][0].numel()
    ]
    return fresh(max(calls, key=lambda call: len(tensors(call))))


def results(name, call):
    """What the call returns, and what it leaves in its arguments."""
    args, kwargs = fresh(call)
    return tensors((function(name)(*args, **kwargs), args, kwargs))


def run(name, leaves, spec):
    args, kwargs = tree_unflatten(leaves, spec)
    return function(name)(*args, **kwargs)


def each_tensor(call):
    """The leaves of the call and their layout, with the place of one tensor after the other."""
    leaves, spec = tree_flatten(call)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor) and leaf.numel():
            yield i, list(leaves), spec


def assert_same(got, expected):
    assert all(same(a, b) for a, b in zip(tensors(got), tensors(expected), strict=True))


@pytest.mark.parametrize("wrapped", ["all", "one"])
@pytest.mark.parametrize("name", PURE)
def test_functionalize(name, wrapped):
    call = call_of(name)
    expected = results(name, call)
    for i, leaves, spec in each_tensor(call):
        places = [j for j, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        places = places if wrapped == "all" else [i]

        def f(*given, places=places, leaves=leaves, spec=spec):
            for j, tensor in zip(places, given, strict=True):
                leaves[j] = tensor
            return tensors(run(name, leaves, spec))

        got = torch.func.functionalize(f)(*(leaves[j] for j in places))
        assert_same(got, expected[: len(got)])


def test_functionalize_of_a_view():
    logits = torch.randn(5, 100)
    got = torch.func.functionalize(lambda x: tuple(pyttc.topk_score(x[1:], 3)))(logits)
    assert_same(got, pyttc.topk_score(logits[1:], 3))


@pytest.mark.parametrize("name", IN_PLACE)
def test_functionalize_of_an_op_in_place_is_refused_by_torch(name):
    call = call_of(name)
    for i, leaves, spec in each_tensor(call):

        def f(tensor, i=i, leaves=leaves, spec=spec):
            leaves[i] = tensor
            run(name, leaves, spec)
            return tensor

        with pytest.raises(RuntimeError, match="functionaliz"):
            torch.func.functionalize(f)(leaves[i])


@pytest.mark.parametrize("name", NAMES)
def test_a_fake_tensor_beside_real_ones_is_refused(name):
    for i, leaves, spec in each_tensor(call_of(name)):
        with FakeTensorMode() as mode:
            leaves[i] = mode.from_tensor(leaves[i])
        if sum(isinstance(leaf, torch.Tensor) for leaf in leaves) > 1:
            with pytest.raises(AssertionError, match="FakeTensor"):
                run(name, leaves, spec)


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_freed_storage_is_refused_by_name(name, view):
    for i, leaves, spec in each_tensor(call_of(name)):
        tensor = leaves[i].clone(memory_format=torch.contiguous_format)
        if view:
            tensor = torch.stack((tensor, tensor))[1]
        tensor.untyped_storage().resize_(0)
        leaves[i] = tensor
        args, kwargs = tree_unflatten(leaves, spec)
        for impl in (None, "native", "reference"):
            with pytest.raises(RuntimeError, match=r"^\w+: got a tensor whose storage is empty"):
                function(name)(*args, **kwargs, impl=impl)


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_of_zeros_without_memory(name):
    # its strides are 0, which some arguments take
    for i, leaves, spec in each_tensor(call_of(name)):
        zeros = leaves.copy()
        zeros[i] = leaves[i].new_zeros(()).expand(leaves[i].shape)
        leaves[i] = torch._efficientzerotensor(leaves[i].shape, dtype=leaves[i].dtype)
        try:
            expected = run(name, fresh(zeros), spec)
        except ValueError:
            with pytest.raises(
                (ValueError, RuntimeError), match="expected|ZeroTensors are immutable"
            ):
                run(name, leaves, spec)
        else:
            assert_same(run(name, leaves, spec), expected)


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_is_refused_by_name(name):
    for i, leaves, spec in each_tensor(call_of(name)):
        plain = leaves[i]
        if not plain.is_floating_point():
            continue
        told = r"^\w+: got a tensor with a tangent, but"

        def f(tensor, i=i, leaves=leaves, spec=spec):
            leaves[i] = tensor
            return run(name, leaves, spec) or tensor

        for transformed in (torch.func.jvp, torch.vmap(torch.func.jvp, in_dims=(None, 0, 0))):
            given = plain if transformed is torch.func.jvp else torch.stack((plain, plain))
            with pytest.raises(RuntimeError, match=told):
                transformed(f, (given,), (given,))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(plain, torch.ones_like(plain))
            with pytest.raises(RuntimeError, match=told):
                f(dual)
            with pytest.raises(RuntimeError, match=told), torch.no_grad():
                f(dual)
            with pytest.raises(RuntimeError, match=told), Calls():  # as the dispatcher calls it
                f(dual)
            f(forward_ad.unpack_dual(dual).primal.detach())


@pytest.mark.parametrize("name", NAMES)
def test_reverse_mode_of_a_transform_is_refused_by_name(name):
    for i, leaves, spec in each_tensor(call_of(name)):
        plain = leaves[i]
        if not plain.is_floating_point():
            continue

        def f(tensor, i=i, leaves=leaves, spec=spec):
            leaves[i] = tensor
            return (tensors(run(name, leaves, spec)) or [tensor])[0].sum()

        for transform in (torch.func.grad, torch.func.jacrev):
            with pytest.raises(RuntimeError, match="requires grad, but"):
                transform(f)(plain)
        with pytest.raises(RuntimeError, match="requires grad, but"):
            torch.vmap(torch.func.grad(f))(torch.stack((plain, plain)))


@pytest.mark.parametrize("name", PURE)
def test_vmap(name):
    call = call_of(name)
    expected = tensors(results(name, call))
    for i, leaves, spec in each_tensor(call):

        def f(tensor, i=i, leaves=leaves, spec=spec):
            leaves[i] = tensor
            return tuple(tensors(run(name, leaves, spec)))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = torch.vmap(f)(torch.stack((leaves[i], leaves[i])))
        for of_two, one in zip(got, expected, strict=False):
            assert all(same(part, one) for part in of_two)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PURE)
def test_a_trace_holds_the_op(name):
    leaves, spec = tree_flatten(call_of(name))
    places = [j for j, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def f(*given):
        traced = leaves.copy()
        for j, tensor in zip(places, given, strict=True):
            traced[j] = tensor
        return tuple(tensors(run(name, traced, spec)))

    given = [leaves[j] for j in places]
    other = [given[0] + 1, *given[1:]]
    for graph in (
        torch.jit.trace(f, tuple(given), check_trace=False),
        make_fx(f)(*given),
        make_fx(f, pre_dispatch=True)(*given),
    ):
        assert_same(graph(*other), f(*other))


@pytest.mark.parametrize("name", NAMES)
def test_a_profiler_sees_the_op(name):
    args, kwargs = call_of(name)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(name)(*args, **kwargs)
    assert any(event.key.startswith(f"pyttc::{name}") for event in profile.key_averages())
    with torch.autograd.profiler.profile() as old:
        function(name)(*args, **kwargs)
    assert any(event.key.startswith(f"pyttc::{name}") for event in old.key_averages())


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_modes_see_the_op(name):
    args, kwargs = call_of(name)
    with Functions() as functions:
        function(name)(*args, **kwargs)
    assert any(f"pyttc.{name}" in seen for seen in functions.seen)
    with Calls() as calls:
        function(name)(*args, **kwargs)
    assert calls.seen


class Sub(torch.Tensor):
    """Inherits everything."""


class Halved(torch.Tensor):
    """Holds twice what it stands for."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def value(tensor):
            with torch._C._DisableTorchDispatch():
                return torch.Tensor.as_subclass(tensor, torch.Tensor) / 2

        return func(*tree_map_only(cls, value, args), **tree_map_only(cls, value, kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_a_subclass_in_any_place(name):
    call = call_of(name)
    expected = results(name, call)
    for i, leaves, spec in each_tensor(call):
        leaves[i] = leaves[i].as_subclass(Sub)
        got = results(name, tree_unflatten(leaves, spec))
        for a, b in zip(got, expected, strict=True):
            assert same(a.as_subclass(torch.Tensor), b)
        with torch._C.DisableTorchFunctionSubclass():
            run(name, fresh(leaves), spec)


@pytest.mark.parametrize("name", PURE)
def test_a_subclass_that_stands_for_something_else(name):
    for i, leaves, spec in each_tensor(call_of(name)):
        if leaves[i].is_floating_point():
            expected = run(name, [*leaves[:i], leaves[i] / 2, *leaves[i + 1 :]], spec)
            leaves[i] = torch.Tensor._make_subclass(Halved, leaves[i])
            assert_same(run(name, leaves, spec), expected)


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    call = call_of(name)
    expected = results(name, call)
    for i, leaves, spec in each_tensor(call):
        leaves[i] = torch.nn.Parameter(leaves[i], requires_grad=False)
        assert_same(results(name, tree_unflatten(leaves, spec)), expected)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_settings_of_torch_change_nothing(name, impl):
    args, kwargs = call_of(name)
    call = args, {**kwargs, "impl": None if impl == "native" else impl}
    expected = results(name, call)
    for setting in (
        lambda: torch.device("meta"),
        lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.bfloat16),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode,
        deterministic,
    ):
        args, kwargs = fresh(call)
        with setting():
            got = tensors((function(name)(*args, **kwargs), args, kwargs))
        assert_same(got, expected)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_under_another_default_device(name):
    call = call_of(name)
    expected = results(name, call)
    args, kwargs = fresh(call)
    torch._dynamo.reset()
    with torch.device("meta"):
        compiled = torch.compile(function(name), backend="aot_eager", fullgraph=True)
        got = tensors((compiled(*args, **kwargs), args, kwargs))
    assert_same(got, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_other_layouts_are_refused(name):
    for i, leaves, spec in each_tensor(call_of(name)):
        tensor = leaves[i]
        others = [tensor.to_sparse(), tensor.to(torch.complex64).conj()]
        if tensor.dim() == 2:
            others.append(tensor.to_sparse_csr())
        if tensor.is_floating_point():
            others.append(torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8))
            others.append(torch.nested.nested_tensor([tensor, tensor]))
        if tensor.dtype == torch.float32 and tensor.dim() == 2:
            others.append(tensor.to_mkldnn())
        for other in others:
            with pytest.raises((TypeError, ValueError, RuntimeError)):
                run(name, [*leaves[:i], other, *leaves[i + 1 :]], spec)


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_lazy_clone_is_written_alone(name):
    args, kwargs = call_of(name)
    expected = results(name, (args, kwargs))
    before = [t.clone() for t in tensors(args)]
    lazy = tree_map_only(torch.Tensor, torch._lazy_clone, args)
    function(name)(*lazy, **kwargs)
    assert_same(args, before)
    assert_same(lazy, expected[-len(before) :])
