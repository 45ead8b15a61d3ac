"""How an op finds its implementation.

An op is a schema, its argument checks, a fake (the shapes of its outputs) and up to four
implementations, all taking the op's own arguments: ``reference`` (torch, any device; the definition),
``native`` (C++ on the CPU), ``triton`` and ``cuda``. A call is served by the one `impl=` names, or
else by the default of its device. Nothing falls back: what cannot be served raises and says why.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

IMPLS = ("reference", "native", "triton", "cuda")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# The library lives as long as the process: dropping it would unregister every op.
library = torch.library.Library("pyttc", "DEF")


@dataclass
class Implementation:
    """One way to run an op: the function, and why it cannot run here (None when it can)."""

    run: Callable[..., Any]
    device: str | None  # the only device type it serves, None for any
    missing: str | None = None


@dataclass
class Op:
    """A registered op. `main` is the position of the tensor whose device and dtype decide."""

    name: str
    impls: dict[str, Implementation]
    default: Any  # the torch OpOverload
    main: int

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


ops: dict[str, Op] = {}


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
    returns empty outputs. `check` runs first for every implementation, on real and fake tensors.
    """
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    full_name = schema.partition("(")[0]
    name, _, overload = full_name.partition(".")
    op = Op(name, impls, getattr(getattr(torch.ops.pyttc, name), overload or "default"), main)
    in_place = [
        i
        for i, argument in enumerate(op.default._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    native = impls["native"].run if "native" in impls else None
    grad_enabled, tensor_type, floats = torch.is_grad_enabled, torch.Tensor, FLOATS
    increment_version = torch.autograd.graph.increment_version

    def kernel(*args: Any, impl: str | None = None, **kwargs: Any) -> Any:
        if grad_enabled():
            for value in (*args, *kwargs.values()):
                if isinstance(value, tensor_type) and value.requires_grad:
                    raise RuntimeError(
                        f"pyttc.{name} has no backward and an argument requires grad: "
                        "call it under torch.no_grad(), or pass it detached"
                    )
        check(*args, **kwargs)
        tensor = args[main]
        if impl is None and native is not None and tensor.is_cpu and tensor.dtype in floats:
            result = native(*args, **kwargs)
        else:
            result = op.choose(impl, tensor).run(*args, **kwargs)
        if in_place:  # so that autograd notices when a tensor it saved was written
            increment_version([args[i] for i in in_place])
        return result

    def fake_kernel(*args: Any, impl: str | None = None, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return fake(*args, **kwargs)

    library.impl(full_name, kernel, "CPU")
    library.impl(full_name, kernel, "CUDA")
    torch.library.register_fake(f"pyttc::{full_name}", fake_kernel, lib=library)
    ops.setdefault(name, op)
    return op


@dataclass
class Explanation:
    """What `explain` found: the implementation that would run, why, and why each other would not."""

    op: str
    chosen: str | None
    why: str
    others: dict[str, str]

    def __str__(self) -> str:
        lines = [f"pyttc.{self.op}: {self.chosen or 'nothing'} would run ({self.why})"]
        lines += [f"  {impl}: {reason}" for impl, reason in self.others.items()]
        return "\n".join(lines)


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Says which implementation would serve `fn(*args, **kwargs)`, and why. Nothing is run.

    Args:
        fn: an op of this package, such as `pyttc.topk_score`.
        *args, **kwargs: the arguments of the call, `impl=` among them if it would be given.
    """
    op = ops.get(getattr(fn, "__name__", ""))
    if op is None:
        raise ValueError(f"fn: got {fn!r}, expected one of the ops {', '.join(sorted(ops))}")
    bound = inspect.signature(fn).bind(*args, **kwargs)
    tensor = bound.arguments[list(inspect.signature(fn).parameters)[op.main]]
    impl = bound.arguments.get("impl")
    default = op.default_impl(tensor.device.type)
    wanted = impl or default
    reason = op.refusal(wanted, tensor)
    why = f"named by impl={impl!r}" if impl else f"the default on {tensor.device.type}"
    others = {}
    for other in IMPLS:
        if other != wanted:
            others[other] = op.refusal(other, tensor) or "can serve this call when named by impl="
    if reason:
        return Explanation(op.name, None, f"{why}, but {reason}", others)
    return Explanation(op.name, wanted, why, others)
