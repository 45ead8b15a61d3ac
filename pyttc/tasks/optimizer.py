"""Muon for the matrices of the layers, Adam for everything else (Jordan et al. 2024; arXiv 2502.16982):
on small models about half the tokens that Adam alone needs."""

from __future__ import annotations

import torch
from torch import nn

# odd quintic whose iteration drives singular values towards 1
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(updates: torch.Tensor) -> torch.Tensor:
    """Approximately the nearest orthogonal matrix of each of [n, rows, columns]."""
    a, b, c = QUINTIC
    x = updates.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    """step(scale) applies the gradients, scaled learning rates, and clears them."""

    def __init__(self, model: nn.Module, matrix_rate: float = 0.02, rate: float = 0.003) -> None:
        self.matrix_rate, self.rate, self.count = matrix_rate, rate, 0
        self.parameters = dict(model.named_parameters())
        self.moments = {n: torch.zeros_like(p) for n, p in self.parameters.items()}
        self.groups: dict[torch.Size, list[str]] = {}
        for name, weight in self.parameters.items():
            if weight.dim() == 2 and "layers." in name:
                self.groups.setdefault(weight.shape, []).append(name)
        matrices = {name for names in self.groups.values() for name in names}
        self.others = [name for name in self.parameters if name not in matrices]
        self.squares = {n: torch.zeros_like(self.parameters[n]) for n in self.others}

    @torch.no_grad()
    def step(self, scale: float) -> None:
        self.count += 1
        for shape, names in self.groups.items():
            updates = []
            for name in names:
                gradient = self.parameters[name].grad
                self.moments[name].lerp_(gradient, 0.05)
                updates.append(gradient.lerp(self.moments[name], 0.95))
            rate = self.matrix_rate * scale * max(1.0, shape[0] / shape[1]) ** 0.5
            for name, update in zip(names, orthogonalize(torch.stack(updates)), strict=True):
                self.parameters[name].mul_(1 - 0.01 * rate).sub_(update, alpha=rate)
        for name in self.others:
            gradient, weight = self.parameters[name].grad, self.parameters[name]
            first, second = self.moments[name], self.squares[name]
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.02)
            size = (second / (1 - 0.98**self.count)).sqrt() + 1e-8
            weight.sub_(first / (1 - 0.9**self.count) / size, alpha=self.rate * scale)
        for weight in self.parameters.values():
            weight.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and moments, to be saved."""
        tensors = {f"weight.{n}": p.detach() for n, p in self.parameters.items()}
        tensors |= {f"moment.{n}": t for n, t in self.moments.items()}
        return tensors | {f"square.{n}": t for n, t in self.squares.items()}

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of state; the step count is taken as large, since moments are warm."""
        self.count = 10_000
        for name, weight in self.parameters.items():
            weight.copy_(state[f"weight.{name}"])
            self.moments[name].copy_(state[f"moment.{name}"])
        for name in self.others:
            self.squares[name].copy_(state[f"square.{name}"])
