"""sample with masks, filters and logits of any kind: a token that the mask allows, or none."""

from __future__ import annotations

import struct

import torch

import pyttc
from tests.fuzz import Reader

SEEDS = (b"", b"\x05\x02" + bytes(range(60)), b"\x40\x03" + b"\xff" * 90)
SPECIAL = (0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.4e38, -3.4e38, 1e-45)


def target(data: bytes) -> None:
    reader = Reader(data)
    v, rows = 1 + reader.below(70), 1 + reader.below(3)
    words = (v + 31) // 32
    mask = torch.tensor(
        [struct.unpack("<i", reader.take(4))[0] for _ in range(rows * words)], dtype=torch.int32
    ).view(rows, words)
    temperature, top_k = reader.below(5) / 2, reader.below(9) - 1
    top_p, min_p = reader.below(11) / 10, reader.below(11) / 10
    values = [reader.below(32) for _ in range(rows * v)]
    logits = torch.tensor(
        [SPECIAL[n - 24] if n >= 24 else (n - 12) / 3 for n in values], dtype=torch.float32
    ).view(rows, v)
    ids = torch.arange(rows)
    drawn = pyttc.sample(
        logits,
        seed=7,
        path_ids=ids,
        positions=ids,
        mask=mask,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )
    bits = (mask[:, :, None] >> torch.arange(32) & 1).bool().view(rows, -1)[:, :v]
    for row, token, valid, allowed in zip(
        logits, drawn.tokens.tolist(), drawn.valid.tolist(), bits, strict=True
    ):
        bad = bool(row.isnan().any() or (row == float("inf")).any())
        some = bool((allowed & (row > -float("inf"))).any())
        assert valid == (some and not bad) == (token >= 0)
        assert token < 0 or (allowed[token] and row[token] > -float("inf"))
