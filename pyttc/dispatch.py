"""How an op finds its implementation.

An op is a schema, its argument checks, a fake (the shapes of its outputs) and up to four
implementations, all taking the op's own arguments: ``reference`` (torch, any device; the definition),
``native`` (C++ on the CPU), ``triton`` and ``cuda``. A call is served by the one `impl=` names, or
else by the default of its device. Nothing falls back: what cannot be served raises and says why.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

IMPLS = ("reference", "native", "triton", "cuda")
# The library lives as long as the process: dropping it would unregister every op.
library = torch.library.Library("pyttc", "DEF")
# The types of arguments that every implementation takes: no subclass of torch.Tensor is among them.
PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, int, float, bool, str, list, type(None)))


@dataclass
class Implementation:
    """One way to run an op: the function, and why it cannot run here (None when it can)."""

    run: Callable[..., Any]
    device: str | None  # the only device type it serves, None for any
    missing: str | None = None


@functools.cache
def _module(name: str) -> Any:
    """A submodule of the package, loaded at its first use."""
    module = importlib.import_module(f"pyttc.{name}")
    if name == "_cuda":
        module.bind_torch(torch.Tensor, torch.nn.Parameter)
    return module


def cuda_module() -> Any:
    """pyttc._cuda, the CUDA kernels."""
    return _module("_cuda")


def cuda(run: Callable[..., Any]) -> Implementation:
    """The implementation of an op that calls `cuda_module()`."""
    built = importlib.util.find_spec("pyttc._cuda") is not None
    missing = (
        None if built else "this build has no CUDA kernels (no nvcc was found, or PYTTC_CUDA=0)"
    )
    return Implementation(run, "cuda", missing)


def triton(name: str, function: str = "launch") -> Implementation:
    """The implementation of op `name` in pyttc.triton_kernels: `function` takes the op's arguments."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return getattr(_module(f"triton_kernels.{name}"), function)(*args, **kwargs)

    missing = None if importlib.util.find_spec("triton") else "triton is not installed"
    # Triton's interpreter runs kernels on host tensors.
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return Implementation(run, None if interpreted else "cuda", missing)


@dataclass
class Op:
    """A registered op. `main` is the position of the tensor whose device and dtype decide."""

    name: str
    impls: dict[str, Implementation]
    default: Any  # the torch OpOverload
    main: int
    call: Callable[..., Any]  # the same with less overhead
    refuse: Callable[..., None]  # raises what any implementation would, given args and kwargs

    def refusal(self, impl: str, tensor: torch.Tensor) -> str | None:
        """Why `impl` cannot serve a call on `tensor`, or None."""
        chosen = self.impls.get(impl)
        if chosen is None:
            return f"pyttc.{self.name} has no {impl} implementation"
        if chosen.missing:
            return chosen.missing
        if chosen.device and tensor.device.type != chosen.device:
            return f"{impl} runs on {chosen.device}, the tensors are on {tensor.device}"
        if impl != "reference" and tensor.dtype == torch.float64:
            return f"{impl} serves float32, bfloat16 and float16; float64 needs impl='reference'"
        return None

    def choose(self, impl: str | None, tensor: torch.Tensor) -> Implementation:
        if impl is None:
            impl = self.default_impl(tensor.device.type)
        elif impl not in IMPLS:
            raise ValueError(f"impl: got {impl!r}, expected one of {', '.join(IMPLS)} or None")
        reason = self.refusal(impl, tensor)
        if reason:
            raise RuntimeError(f"pyttc.{self.name}: impl={impl!r} cannot serve this call: {reason}")
        return self.impls[impl]

    def default_impl(self, device_type: str) -> str:
        """native on the CPU; on a GPU cuda where it was built for this op, else triton."""
        if device_type == "cpu":
            return "native"
        cuda = self.impls.get("cuda")
        return "cuda" if cuda is not None and cuda.missing is None else "triton"


ops: dict[str, Op] = {}  # by name, the first of its overloads
overloads: dict[Any, Op] = {}


def plain(value: Any) -> Any:
    is_tensor = isinstance(value, torch.Tensor) and type(value) not in PLAIN
    return value.as_subclass(torch.Tensor) if is_tensor else value


def register(
    schema: str,
    *,
    check: Callable[..., None],
    fake: Callable[..., Any],
    impls: dict[str, Implementation],
    main: int = 0,
) -> Op:
    """Defines torch.ops.pyttc.<name> from a schema whose last argument is `str? impl=None`.

    `check` and every implementation take the schema's arguments without `impl`; `fake` too, and
    returns empty outputs. `check` runs first, on real and fake tensors; not before `native`, which
    itself refuses whatever `check` would, before it writes anything, and runs `check` only to say why.
    """
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    full_name = schema.partition("(")[0]
    name, _, overload = full_name.partition(".")
    default = getattr(getattr(torch.ops.pyttc, name), overload or "default")
    arguments = default._schema.arguments
    names: list[str] = [argument.name for argument in arguments]
    in_place = [i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]
    native = impls["native"].run if "native" in impls else None
    grad_enabled, tensor_type = torch.is_grad_enabled, torch.Tensor
    increment_version = torch.autograd.graph.increment_version
    is_compiling, is_tracing = torch.compiler.is_dynamo_compiling, torch._C._is_tracing
    profiling, transform = (
        torch._C._autograd._profiler_enabled,
        torch._C._functorch.peek_interpreter_stack,
    )
    dispatch_modes = torch._C._len_torch_dispatch_stack
    function_modes = torch._C._len_torch_function_stack
    excluded = torch._C._dispatch_tls_is_dispatch_key_excluded

    def name_of(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        given = dict(zip(names, args, strict=False)) | kwargs
        return next(key for key, other in given.items() if other is value)

    def refuse_grad(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, tensor_type) and value.requires_grad:
                raise RuntimeError(
                    f"{name_of(value, args, kwargs)}: got a tensor that requires grad, but "
                    f"pyttc.{name} has no backward: call it under torch.no_grad(), or pass it detached"
                )

    def refuse_tangent(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, tensor_type) and forward_ad.unpack_dual(value).tangent is not None:
                raise RuntimeError(
                    f"{name_of(value, args, kwargs)}: got a tensor with a tangent, but pyttc.{name} "
                    "has no forward derivative: pass it detached"
                )

    def refuse_derivative(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if grad_enabled():
            refuse_grad(args, kwargs)
        # Below autograd, as a transform calls the kernel, nothing can be asked about tangents.
        if forward_ad._current_level >= 0 and not excluded(
            torch._C.DispatchKey.AutogradFunctionality
        ):
            refuse_tangent(args, kwargs)

    def fail_none(args: tuple[Any, ...]) -> None:
        """torch takes None for any tensor: names the argument."""
        for argument, value in zip(arguments, args, strict=False):
            if value is None and str(argument.type) == "Tensor":
                raise TypeError(f"{argument.name}: got None, expected a tensor") from None

    def refuse_overflow(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """torch does not say which number it cannot take: names the argument."""
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name}: got {value}, expected a number of 64 bits")

    def check_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            check(*args, **kwargs)
        except AttributeError:
            fail_none(args)
            raise

    def refuse_freed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """native says only that a tensor has no memory, torch would read it: names the argument."""
        for value in (*args, *kwargs.values()):
            if (
                isinstance(value, tensor_type)
                and value.numel()
                and not value.untyped_storage().nbytes()
            ):
                raise RuntimeError(
                    f"{name_of(value, args, kwargs)}: got a tensor whose storage is empty (was it "
                    "freed?), expected one that holds its elements"
                ) from None

    def refuse(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        refuse_derivative(args, kwargs)
        check_call(args, kwargs)

    def run(impl: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor = args[main]
        if impl is None and native is not None and tensor is not None and tensor.is_cpu:
            try:
                return native(*args, **kwargs)
            except Exception:  # `check` says what is wrong where native knows only that it is
                check_call(args, kwargs)
                op.choose(impl, tensor)
                refuse_freed(args, kwargs)
                raise
        check_call(args, kwargs)
        chosen = op.choose(impl, tensor).run
        if tensor.is_cpu:
            refuse_freed(args, kwargs)
        if impl == "reference":  # autocast would round what it sums
            chosen = torch.autocast(tensor.device.type, enabled=False)(chosen)
        return chosen(*args, **kwargs)

    def kernel(*args: Any, impl: str | None = None, **kwargs: Any) -> Any:
        refuse_derivative(args, kwargs)
        try:
            result = run(impl, args, kwargs)
        except Exception:
            if PLAIN.issuperset(map(type, (*args, *kwargs.values()))):
                raise
            # native and cuda take no subclass of torch.Tensor; torch has seen to what it does
            options = {key: plain(value) for key, value in kwargs.items()}
            result = run(impl, tuple(map(plain, args)), options)
        if in_place:  # so that autograd notices when a tensor it saved was written
            increment_version([args[i] for i in in_place])
        return result

    def fake_kernel(*args: Any, impl: str | None = None, **kwargs: Any) -> Any:
        refuse(args, kwargs)
        return fake(*args, **kwargs)

    def dispatched(args: tuple[Any, ...], impl: str | None, kwargs: dict[str, Any]) -> Any:
        if transform() is not None or forward_ad._current_level >= 0:
            refuse_derivative(args, kwargs)  # the kernel is given what a transform's tensors hold
        try:
            return default(*args, impl=impl, **kwargs)
        except Exception:
            refuse_overflow(args, kwargs)
            raise

    def call(*args: Any, impl: str | None = None, **kwargs: Any) -> Any:
        """The op without torch's dispatcher (some 3 us) where nothing but the op would see the call:
        eager, on plain CPU tensors (which native sees to), with nothing that follows, records or
        transforms what is called. What goes wrong there is said by the dispatcher and `kernel`."""
        tensor = args[main]
        if tensor is None:  # the dispatcher would not say which, where this is the only tensor
            raise TypeError(f"{names[main]}: got None, expected a tensor")
        if is_compiling():
            return default(*args, impl=impl, **kwargs)
        if (
            impl is None
            and type(tensor) is tensor_type
            and tensor.is_cpu
            and native is not None
            and not (dispatch_modes() or function_modes() or is_tracing() or profiling())
            and transform() is None
            and forward_ad._current_level < 0
        ):
            if grad_enabled():
                refuse_grad(args, kwargs)
            try:
                result = native(*args, **kwargs)
            except Exception:
                return dispatched(args, impl, kwargs)
            if in_place:
                increment_version([args[i] for i in in_place])
            return result
        return dispatched(args, impl, kwargs)

    op = Op(name, impls, default, main, call, refuse)
    library.impl(full_name, kernel, "CPU")
    library.impl(full_name, kernel, "CUDA")
    torch.library.register_fake(f"pyttc::{full_name}", fake_kernel, lib=library)
    ops.setdefault(name, op)
    overloads[default] = op
    return op


class _Reached(Exception):
    """Of a call of an op: the overload, its arguments and keyword arguments."""


class _UntilReached(TorchDispatchMode):
    """Ends what it is active for where an op of this package is called."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in overloads:
            raise _Reached(overloads[func], args, kwargs or {})
        return func(*args, **(kwargs or {}))


@dataclass
class Explanation:
    """What `explain` found: the implementation that would run, why, and why each other would not.
    Where the call raises whatever runs, there are no others."""

    op: str
    chosen: str | None
    why: str
    others: dict[str, str]

    def __str__(self) -> str:
        lines = [f"pyttc.{self.op}: {self.chosen or 'nothing'} would run ({self.why})"]
        lines += [f"  {impl}: {reason}" for impl, reason in self.others.items()]
        return "\n".join(lines)


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Says which implementation would serve `fn(*args, **kwargs)`, and why, or what the call would raise.
    Nothing is run: errors that only the values in a tensor show are not foreseen.

    Args:
        fn: an op of this package, such as `pyttc.topk_score`.
        *args, **kwargs: the arguments of the call, `impl=` among them if it would be given.
    """
    name = getattr(fn, "__name__", "")
    if name not in ops or fn.__module__ != f"{__package__}.ops.{name}":
        raise ValueError(f"fn: got {fn!r}, expected one of the ops {', '.join(sorted(ops))}")
    try:
        with _UntilReached():  # type: ignore[no-untyped-call]
            fn(*args, **kwargs)
    except _Reached as reached:
        op, op_args, op_kwargs = reached.args
    except Exception as error:
        return _raises(name, error)
    impl = op_kwargs.pop("impl", None)
    try:
        op.refuse(op_args, op_kwargs)
    except Exception as error:
        return _raises(name, error)
    tensor = op_args[op.main]
    wanted = impl or op.default_impl(tensor.device.type)
    reason = op.refusal(wanted, tensor)
    why = f"named by impl={impl!r}" if impl else f"the default on {tensor.device.type}"
    others = {}
    for other in IMPLS:
        if other != wanted:
            others[other] = op.refusal(other, tensor) or "can serve this call when named by impl="
    if reason:
        return Explanation(name, None, f"{why}, but {reason}", others)
    return Explanation(name, wanted, why, others)


def _raises(name: str, error: Exception) -> Explanation:
    return Explanation(name, None, f"the call raises {type(error).__name__}: {error}", {})
