"""What a run was asked for, in terms that JSON knows and another process finds again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import math
from types import FunctionType, MethodType
from typing import Any

import torch

from ..engine import Engine, LinearHead


def described(value: Any, depth: int = 8) -> Any:
    """Numbers and texts as they are; functions by name, with what they enclose; dataclasses by their
    fields; tensors, heads and modules by a digest of their numbers; anything else by its type."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if not depth:
        return named(type(value))
    inner = functools.partial(described, depth=depth - 1)
    if isinstance(value, (list, tuple)):
        return [inner(one) for one in value]
    if isinstance(value, dict):
        return {str(key): inner(one) for key, one in value.items()}
    if isinstance(value, torch.Tensor):
        return f"tensor {digest({'': value})}"
    if isinstance(value, torch.nn.Module):
        return {"is": named(type(value)), "digest": digest(dict(value.state_dict()))}
    if isinstance(value, functools.partial):
        return {"is": "partial", "of": inner([value.func, value.args, value.keywords])}
    if isinstance(value, MethodType):
        return {"is": named(value.__func__), "of": inner(value.__self__)}
    if isinstance(value, FunctionType):
        enclosed = inspect.getclosurevars(value).nonlocals
        return {"is": named(value), "with": inner(enclosed)} if enclosed else named(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        attributes = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    else:
        attributes = vars(value) if isinstance(value, LinearHead) else {}
    kind = value if hasattr(value, "__qualname__") else type(value)
    return {"is": named(kind), **inner(attributes)} if attributes else named(kind)


def named(thing: Any) -> str:
    return f"{getattr(thing, '__module__', None)}.{thing.__qualname__}"


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """16 hexadecimal digits of names, types, shapes and bytes."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def model(engine: Engine) -> dict[str, Any]:
    """What decides a model's bits: weights, the versions and the device that multiply them."""
    from .. import __version__

    cuda = engine.device.type == "cuda"
    device = (
        torch.cuda.get_device_name(engine.device)
        if cuda
        else torch.backends.cpu.get_cpu_capability()
    )
    return {
        "pyttc": __version__,
        "torch": torch.__version__,
        "device": device,
        "model": digest(dict(engine.model.model.state_dict())),
        "eos": engine.eos,
    }
