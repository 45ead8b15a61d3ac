"""Linear layers whose result for a row depends on that row alone, bit for bit.

A matrix product may sum in another order when it has another number of rows, so that a path's tokens
would depend on how many paths run beside it. Here the result of a row is by definition the one it has
in a block of BLOCK rows on one thread. Larger and smaller blocks are used where a trial with random
numbers shows that they give the same bits for a weight of that shape, dtype and device with the current
number of threads; elsewhere the rows are multiplied block by block.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

BLOCK = 16
SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
_trials: dict[tuple[object, ...], bool] = {}


def same_bits(weight: torch.Tensor, rows: int) -> bool:
    """Whether a product of `rows` rows with a weight like this has the bits of blocks of BLOCK rows."""
    threads = torch.get_num_threads() if weight.device.type == "cpu" else 0
    key = (rows, weight.shape, weight.dtype, weight.device, threads)
    known = _trials.get(key)
    if known is None:
        known = _trials[key] = _trial(weight, rows, threads)
    return known


@torch.no_grad()
def _trial(weight: torch.Tensor, rows: int, threads: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(max(rows, BLOCK), weight.shape[1], generator=generator)
    x = x.to(weight.dtype).to(weight.device)
    try:
        if threads:
            torch.set_num_threads(1)
        expected = torch.cat([F.linear(_padded(b, BLOCK), weight)[: len(b)] for b in x.split(BLOCK)])
        # a row must not feel its place in the block either
        moved = F.linear(x[:BLOCK].flip(0), weight).flip(0)
    finally:
        if threads:
            torch.set_num_threads(threads)
    product = F.linear(x[:rows], weight)
    return torch.equal(product, expected[:rows]) and torch.equal(moved, expected[:BLOCK])


def _padded(x: torch.Tensor, rows: int) -> torch.Tensor:
    return x if x.shape[0] == rows else F.pad(x, (0, 0, 0, rows - x.shape[0]))


class RowsLinear(nn.Linear):
    """An nn.Linear with the bits of a row fixed. Made from one by changing its class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[-1]
        rows = x.numel() // width
        if rows <= SIZES[-1] and same_bits(self.weight, rows):
            return F.linear(x, self.weight, self.bias)
        flat = x.reshape(rows, width)
        out = flat.new_empty(rows, self.out_features)
        for at, size in blocks(rows, self.weight):
            part = flat[at : at + size]
            out[at : at + size] = F.linear(_padded(part, size), self.weight, self.bias)[: len(part)]
        return out.view(*x.shape[:-1], self.out_features)


def blocks(rows: int, weight: torch.Tensor) -> list[tuple[int, int]]:
    """(first row, block size) of the blocks that cover `rows`; the last may reach past the end."""
    largest = next((s for s in reversed(SIZES) if s >= BLOCK and same_bits(weight, s)), BLOCK)
    at, parts = 0, []
    while rows - at >= largest:
        parts.append((at, largest))
        at += largest
    while at < rows:
        size = next((s for s in SIZES if s >= rows - at and same_bits(weight, s)), BLOCK)
        parts.append((at, size))
        at += size
    return parts


def fix_rows(model: nn.Module) -> list[nn.Linear]:
    """Makes every nn.Linear of `model` a RowsLinear; returns them."""
    layers = [m for m in model.modules() if type(m) is nn.Linear]
    for layer in layers:
        layer.__class__ = RowsLinear
    return layers


def padded_rows(rows: int, weights: list[torch.Tensor]) -> int:
    """The fewest rows >= `rows` that every weight multiplies at once or in whole blocks."""
    top = SIZES[-1]
    rest = rows % top
    if not rest:
        return rows
    for size in SIZES:
        if size >= rest and all(same_bits(weight, size) for weight in weights):
            return rows - rest + size
    return rows - rest + -(-rest // BLOCK) * BLOCK
