"""What a run was asked for, in terms that JSON knows and another process finds again."""

from __future__ import annotations

import contextlib
import copyreg
import dataclasses
import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

from ..engine import Engine


def described(value: Any, name: str = "", above: tuple[int, ...] = ()) -> Any:
    """Numbers and texts as they are; functions by name, with what they enclose and have as defaults;
    tensors, heads, modules and engines by a digest of their numbers; other objects by their type and what
    they hold.

    Raises:
        TypeError: for what holds nothing that could be compared, such as a file or a generator.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if id(value) in above:  # it holds itself
        return named(value if hasattr(value, "__qualname__") else type(value))

    def inner(one: Any, key: str = "") -> Any:
        return described(one, ".".join(filter(None, (name, key))), (*above, id(value)))

    if isinstance(value, bytes):
        return f"bytes {hashlib.blake2b(value, digest_size=8).hexdigest()}"
    if isinstance(value, (list, tuple)):
        return [inner(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted((inner(one) for one in value), key=json.dumps)
    if isinstance(value, Mapping):
        return {str(key): inner(one, str(key)) for key, one in value.items()}
    if isinstance(value, torch.Tensor):
        return f"tensor {digest({'': value})}"
    if isinstance(value, torch.nn.Module):
        return {"is": named(type(value)), "digest": digest(dict(value.state_dict()))}
    if isinstance(value, Engine):
        return model(value)
    if isinstance(value, FunctionType):
        held = {key: inner(one, key) for key, one in enclosed(value).items()}
        return {"is": named(value), "with": held} if held else named(value)
    if hasattr(value, "__wrapped__"):  # a function behind a cache
        return inner(value.__wrapped__)
    if callable(value) and hasattr(value, "__qualname__"):  # a class, a method, one of C
        owner = getattr(value, "__self__", None)
        alone = owner is None or isinstance(owner, ModuleType)
        return named(value) if alone else {"is": named(value), "of": inner(owner)}
    return {"is": named(type(value)), **inner(state(value, name))}


def enclosed(function: FunctionType) -> dict[str, Any]:
    """What a function was given when it was made, its defaults and what it encloses, but for lists,
    dictionaries and the like, where it may keep notes."""
    parameters = inspect.signature(function, follow_wrapped=False).parameters.items()
    given = {key: one.default for key, one in parameters if one.default is not one.empty}
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a cell that is empty yet
            given[key] = cell.cell_contents
    fixed = (bool, int, float, str, bytes, tuple, frozenset, torch.Tensor, np.ndarray, np.generic)
    return {key: one for key, one in given.items() if isinstance(one, fixed) or callable(one)}


def state(value: Any, name: str) -> dict[str, Any]:
    """What an object holds: the fields of a dataclass but for those of its own, `_name`; of others what a
    copy of it would be made of."""
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value) if each.name[0] != "_"]
        return {key: getattr(value, key) for key in names}
    reduce: Any = copyreg.dispatch_table.get(type(value))
    try:
        made = reduce(value) if reduce else value.__reduce_ex__(4)
        _, given, held, *items = (*made, None) if isinstance(made, tuple) else (None, made, None)
    except Exception:  # each type has its own
        kind = named(type(value))
        raise TypeError(f"{name}: got a {kind}, expected something a journal can compare") from None
    others = [given, *(list(one) for one in items if one is not None)]
    attributes = held if isinstance(held, dict) else {} if held is None else {"state": held}
    plain = (
        len(others) == 1
        and isinstance(given, tuple)
        and given[0] is type(value)
        and given[1:] == ()
    )
    return attributes if plain else {**attributes, "of": others}


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
