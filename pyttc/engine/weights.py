"""What is known of a model's weights: where they lie, how often they were written, and of what kind they
are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

_steps = [0]  # of all optimizers: fused ones write without counting it in Tensor._version


def _count_step(*_: Any) -> None:
    _steps[0] += 1


register_optimizer_step_post_hook(_count_step)


def tensors(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, in an order of its own; four times as fast as model.parameters()."""
    modules: list[nn.Module | None] = [model]
    found: list[torch.Tensor | None] = []
    while modules:
        module = modules.pop()
        if module is not None:
            found += module._parameters.values()
            found += module._buffers.values()
            modules += module._modules.values()
    return [tensor for tensor in found if tensor is not None]


def state(model: nn.Module) -> list[int]:
    """Numbers that change when a weight is replaced, or written to where torch counts it."""
    seen = _steps.copy()
    for tensor in tensors(model):
        seen += (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
    return seen


def kinds(model: nn.Module) -> dict[str, str]:
    """Shape, dtype and device of each parameter."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: kind(parameter) for name, parameter in named}


def kind(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def check_kinds(before: dict[str, str], now: dict[str, str]) -> None:
    """Raises ValueError where a model is no longer the one an engine was made of."""
    for name in [*before, *now]:
        was, found = before.get(name, "absent"), now.get(name, "absent")
        if was != found:
            raise ValueError(
                f"model: {name} is {found}, expected {was}, as when the engine was made; "
                "Engine.from_model makes another one"
            )


def check_state(held: dict[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> None:
    """Raises unless `given` is what `held`, a model's state dict, can be set to.

    Of tied weights one may be missing; where all are given, they are equal.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"state_dict: got {type(given).__name__}, expected a dict of tensors")
    if unknown := [name for name in given if name not in held]:
        raise ValueError(f"state_dict: got {unknown[0]!r}, which the model does not have")
    for name, new in given.items():
        if not isinstance(new, torch.Tensor):
            raise TypeError(f"state_dict[{name!r}]: got {type(new).__name__}, expected a tensor")
        old = held[name]
        if new.shape != old.shape or new.dtype is not old.dtype or new.layout is not old.layout:
            raise ValueError(
                f"state_dict[{name!r}]: got {list(new.shape)} {new.dtype}, expected "
                f"{list(old.shape)} {old.dtype}"
            )
        if new.is_meta:
            raise ValueError(f"state_dict[{name!r}]: got a tensor without data, on the meta device")
    places: dict[int, torch.Tensor] = {}
    for name, new in given.items():
        tied = places.setdefault(held[name].data_ptr(), new)
        if tied is not new and not torch.equal(tied.to(new.device), new):
            raise ValueError(f"state_dict[{name!r}]: differs from the weight it is tied to")
    missing = [name for name, old in held.items() if old.data_ptr() not in places]
    if missing:
        raise ValueError(f"state_dict: {missing[0]!r} is missing")
