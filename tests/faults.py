"""Requests for memory that fail: the k-th call into torch or numpy, counted from 1."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy
import pytest
import torch

NAMES = "arguments cache decode engine history identity multi_step path_state paths stops tree"
MODULES = [importlib.import_module(f"pyttc.engine.{name}") for name in NAMES.split()]
# of torch, what gives no tensor
SMALL = {"size", "dim", "stride", "numel", "data_ptr", "get_num_threads", "is_floating_point"}
SMALL |= {"is_contiguous", "element_size", "storage_offset", "is_grad_enabled", "item", "tolist"}


class Requests:
    """How many there were; the one numbered `failing` raises MemoryError."""

    def __init__(self, failing: int = 0) -> None:
        self.failing, self.seen = failing, 0

    def ask(self) -> None:
        self.seen += 1
        if self.seen == self.failing:
            raise MemoryError(f"request {self.seen}")


class Numpy:
    """numpy, where each function that makes an array is a request."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests

    def __getattr__(self, name: str) -> Any:
        value = getattr(numpy, name)
        made_by_c = isinstance(value, (BuiltinFunctionType, FunctionType)) or (
            type(value).__name__ == "_ArrayFunctionDispatcher"
        )
        if not made_by_c:
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            self.requests.ask()
            return value(*args, **kwargs)

        return call


@contextlib.contextmanager
def numpy_requests(failing: int = 0) -> Iterator[Requests]:
    requests = Requests(failing)
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            if hasattr(module, "np"):
                patch.setattr(module, "np", Numpy(requests))
        yield requests


def of_torch(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    if isinstance(owner, torch.Tensor):
        return function.__name__ not in SMALL
    where = getattr(owner, "__module__", None) or getattr(owner, "__name__", "")
    return str(where).startswith("torch") and function.__name__ not in SMALL


@contextlib.contextmanager
def torch_requests(failing: int = 0) -> Iterator[Requests]:
    """Calls of torch's own functions, from this package and from the model alike."""
    requests = Requests(failing)

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "c_call" and of_torch(argument):
            requests.ask()

    sys.setprofile(profile)
    try:
        yield requests
    finally:
        sys.setprofile(None)
