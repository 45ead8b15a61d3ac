"""Layers whose result for a row depends on that row alone, bit for bit.

A matrix product may sum in another order when it has another number of rows, so that a path's
tokens would depend on how many paths run beside it. On the CPU a kernel of our own multiplies, whose
sums know nothing of other rows (csrc/cpu/linear.cpp). On a GPU the result of a row is by definition
the one it has in a block of BLOCK rows. Larger and smaller blocks are used where a trial with random
numbers shows that they give the same bits for a layer of that shape, dtype and device; elsewhere the
rows are multiplied block by block. A pass runs at least BLOCK rows: torch's means over fewer are summed
in other orders.

An exponential or a cosine has other bits in torch's vector loop than in the scalar loop for what is
left over, and what is left over depends on the number of rows and threads. Activations and rotary
embeddings therefore run in pieces small enough for one thread that begin where a vector does, on rows
padded to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .. import _C

BLOCK = 16
SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
PIECE = 32768  # elements that torch's CPU loops give to one thread
VECTOR = 64  # elements that no vector loop exceeds
_trials: dict[tuple[object, ...], bool] = {}


def same_bits(layer: nn.Linear, rows: int) -> bool:
    """Whether a product of `rows` rows by a layer like this has the bits of blocks of BLOCK rows."""
    weight, bias = layer.weight, layer.bias
    key = (rows, weight.shape, bias is None, weight.dtype, weight.device)
    known = _trials.get(key)
    if known is None:
        known = _trials[key] = _trial(weight, bias, rows)
    return known


@torch.no_grad()
def _trial(weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(max(rows, BLOCK), weight.shape[1], generator=generator)
    x = x.to(weight.dtype).to(weight.device)
    parts = [F.linear(_padded(b, BLOCK), weight, bias)[: len(b)] for b in pieces_of(x, BLOCK)]
    expected = torch.cat(parts)
    # a row must not feel its place in the block either
    moved = F.linear(x[:BLOCK].flip(0), weight, bias).flip(0)
    product = F.linear(x[:rows], weight, bias)
    return torch.equal(product, expected[:rows]) and torch.equal(moved, expected[:BLOCK])


def pieces_of(x: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [x[at : at + size] for at in range(0, x.shape[0], size)]


def _padded(x: torch.Tensor, rows: int) -> torch.Tensor:
    return x if x.shape[0] == rows else F.pad(x, (0, 0, 0, rows - x.shape[0]))


class RowsLinear(nn.Linear):
    """An nn.Linear with the bits of a row fixed, but where gradients are wanted. Made from one by changing
    its class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # nn.Module looks parameters up slowly, and this is called for every product of every step
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None  # noqa: S101
        if torch.is_grad_enabled() and any(
            t.requires_grad for t in (x, weight, bias) if t is not None
        ):
            return F.linear(x, weight, bias)
        width = x.shape[-1]
        rows = x.numel() // width
        if weight.is_cpu:
            out = x.new_empty(rows, self.out_features)
            _C.linear(x.reshape(rows, width), weight, bias, out, torch.get_num_threads())
            return out.view(*x.shape[:-1], self.out_features)
        if rows <= SIZES[-1] and same_bits(self, rows):
            return F.linear(x, weight, bias)
        flat = x.reshape(rows, width)
        out = flat.new_empty(rows, self.out_features)
        for at, size in blocks(rows, self):
            part = flat[at : at + size]
            out[at : at + size] = F.linear(_padded(part, size), weight, bias)[: len(part)]
        return out.view(*x.shape[:-1], self.out_features)


def blocks(rows: int, layer: nn.Linear) -> list[tuple[int, int]]:
    """(first row, block size) of the blocks that cover `rows`; the last may reach past the end."""
    largest = next((s for s in reversed(SIZES) if s >= BLOCK and same_bits(layer, s)), BLOCK)
    at, parts = 0, []
    while rows - at >= largest:
        parts.append((at, largest))
        at += largest
    while at < rows:
        size = next((s for s in SIZES if s >= rows - at and same_bits(layer, s)), BLOCK)
        parts.append((at, size))
        at += size
    return parts


def piecewise(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """An element-wise function of x [..., width]; an element's bits depend on its column only."""
    over = -x.shape[-1] % VECTOR
    if not x.is_cpu:
        return function(x)
    if over:  # every row has to begin where a vector does
        return piecewise(function, F.pad(x, (0, over)))[..., :-over].contiguous()
    if x.numel() <= PIECE or torch.get_num_threads() == 1:
        return function(x)
    return torch.cat([function(piece) for piece in pieces_of(x.reshape(-1), PIECE)]).view(x.shape)


def rotary_piecewise(
    forward: Callable[..., tuple[torch.Tensor, ...]],
    width: int,
    x: torch.Tensor,
    position_ids: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, ...]:
    """A rotary embedding of position_ids [1, rows] in pieces of rows, padded to whole vectors; of other
    positions, which are not the engine's, at once."""
    if position_ids.shape[0] != 1:
        return forward(x, position_ids, *args, **kwargs)
    rows, step = position_ids.shape[1], PIECE // max(width, VECTOR)
    padded = F.pad(position_ids, (0, -rows % VECTOR))[0]
    runs = pieces_of(padded, step // VECTOR * VECTOR)
    pieces = [forward(x, run[None], *args, **kwargs) for run in runs]
    return tuple(torch.cat(parts, 1)[:, :rows] for parts in zip(*pieces, strict=True))


def fix_rows(model: nn.Module, head_dim: int) -> list[nn.Linear]:
    """Makes the layers of `model` depend on rows alone; returns the linear ones."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    layers = [m for m in linears if type(m) in (nn.Linear, RowsLinear)]
    for layer in layers:
        layer.__class__ = RowsLinear
    for module in model.modules():
        if isinstance(module.forward, partial):  # it served an engine before
            continue
        if type(module).__module__ in ("transformers.activations", "torch.nn.modules.activation"):
            module.forward = partial(piecewise, module.forward)
        elif type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = partial(rotary_piecewise, module.forward, head_dim)
    return layers


def padded_rows(rows: int, layers: list[nn.Linear]) -> int:
    """The fewest rows >= `rows` that every layer multiplies at once or in whole blocks."""
    if all(layer.weight.is_cpu for layer in layers):
        return rows
    top = SIZES[-1]
    rest = rows % top
    if not rest:
        return rows
    for size in SIZES:
        if size >= max(rest, BLOCK) and all(same_bits(layer, size) for layer in layers):
            return rows - rest + size
    return rows - rest + -(-rest // BLOCK) * BLOCK
