"""Rows of logits that scoring and sampling must get right: shapes of distributions and of ties."""

import torch


def ulps(base: float, steps: torch.Tensor) -> torch.Tensor:
    """Floats `steps` units in the last place above `base` > 0."""
    bits = torch.tensor(base).view(torch.int32) + steps.to(torch.int32)
    return bits.view(torch.float32)


def row(kind: str, v: int, seed: int = 0) -> torch.Tensor:
    """One float32 row [v]."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(v, generator=g)
    if kind == "normal":
        return x
    if kind == "wide":
        return x * 20
    if kind == "flat":
        return x * 0.01
    if kind == "constant":
        return torch.full((v,), -3.25)
    if kind == "two-valued":
        return (x > 1).float()
    if kind == "ascending":
        return torch.linspace(-20, 20, v)
    if kind == "descending":
        return torch.linspace(20, -20, v)
    if kind == "bfloat16":
        return (x * 3).bfloat16().float()
    if kind == "ulp":
        return ulps(1.5, torch.randint(0, 3, (v,), generator=g))
    if kind == "holes":
        return torch.where(x > -0.5, x, -torch.inf)
    if kind == "mostly -inf":
        return torch.where(torch.arange(v) % 997 == v % 997, x, -torch.inf)
    if kind == "zeros":
        return torch.where(x > 0, 0.0, -0.0)
    if kind == "offset":
        return x + 1e4
    if kind == "far below":
        return x - 1e4
    if kind == "float max":
        return torch.where(x > 1, 3.38e38, -3.38e38)
    raise ValueError(kind)


KINDS = (
    "normal",
    "wide",
    "flat",
    "constant",
    "two-valued",
    "ascending",
    "descending",
    "bfloat16",
    "ulp",
    "holes",
    "mostly -inf",
    "zeros",
    "offset",
    "far below",
    "float max",
)
