"""Philox4x32-10 in torch's integer ops: the random numbers every implementation draws.

A draw is a pure function of (seed, path id, position, draw, purpose), so it never depends on the
batch, the order of rows or the device. csrc/include/philox.h is the same function for the kernels.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import torch

TOKEN = 0  # purposes: streams of different purposes never meet
_WORD = 0xFFFFFFFF


def philox(
    key: torch.Tensor | int, counter: tuple[torch.Tensor | int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The four 32-bit words (as int64) of a 64-bit key (its bits as int64) and four counter words.

    Tensors are int64 and broadcast against each other.
    """
    word = [torch.as_tensor(c, dtype=torch.int64) & _WORD for c in counter]
    c0, c1, c2, c3 = word
    bits = torch.as_tensor(key, dtype=torch.int64)
    k0, k1 = bits & _WORD, bits >> 32 & _WORD
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wrap like the unsigned products
        c0, c2 = (p1 >> 32 & _WORD) ^ c1 ^ k0, (p0 >> 32 & _WORD) ^ c3 ^ k1
        c1, c3 = p1 & _WORD, p0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def uniforms(
    seed: torch.Tensor | int,
    path_ids: torch.Tensor,
    positions: torch.Tensor,
    draw: torch.Tensor | int = 0,
    purpose: int = TOKEN,
) -> torch.Tensor:
    """Uniform numbers on [0, 1) with 53 bits, float64, of the broadcast shape of the arguments.

    Args:
        seed: 64 bits, the key.
        path_ids, positions, draw, purpose: the counter's words, each in [0, 2**32).
    """
    low, high, _, _ = philox(seed, (path_ids, positions, draw, purpose))
    return ((high << 21) | (low >> 11)).to(torch.float64) * 2.0**-53
