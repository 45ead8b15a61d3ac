"""The CUDA kernels (csrc/cuda/module.cpp); there where the build found nvcc."""

from collections.abc import Callable
from typing import Any

archs: str  # the targets they were compiled for

def bind_torch(tensor_type: type, parameter_type: type) -> None: ...

# One function an op, named as the op: its tensors and outputs to fill.
def __getattr__(name: str) -> Callable[..., Any]: ...
