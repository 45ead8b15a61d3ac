"""What the tests of all ops share: every registered op with the calls its own tests declare."""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import pyttc
from pyttc.dispatch import ops

Call = tuple[tuple[Any, ...], dict[str, Any]]
# test_map.py says which ops lack a test file; the other tests do not repeat it.
NAMES = sorted(name for name in ops if (Path(__file__).parent / f"test_{name}.py").exists())


def function(name: str) -> Callable[..., Any]:
    return getattr(pyttc, name)


@functools.cache
def _tests_of(name: str) -> Any:
    return importlib.import_module(f"tests.test_{name}")


def sample_inputs(name: str) -> list[Call]:
    return list(_tests_of(name).sample_inputs())


def invalid_calls(name: str) -> list[tuple[tuple[Any, ...], dict[str, Any], str]]:
    return list(_tests_of(name).invalid_calls())


def tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def fresh(values: Any) -> Any:
    """The same call on copies of its tensors, so that an in-place op leaves ours alone. Strides are
    kept, and so is which tensors share memory.
    """
    memory: dict[int, torch.UntypedStorage] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout != torch.strided or tensor.is_meta:
            return tensor
        storage = tensor.untyped_storage()
        own = memory.setdefault(storage._cdata, storage.clone())
        view = torch.empty(0, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
        with torch.no_grad():
            return view.set_(own, tensor.storage_offset(), tensor.shape, tensor.stride())

    return tree_map_only(torch.Tensor, copy, values)


class Calls(TorchDispatchMode):
    """Records the calls of this package's ops, as the dispatcher sees them: every overload."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "pyttc":
            self.seen.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))
